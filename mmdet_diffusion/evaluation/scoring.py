"""Scoring of many runs, which takes one core each: shared among processes."""

import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch
from pycocotools.coco import COCO

from .average_precision import ImageMatches, match_detections
from .bootstrap import aps_of_draws
from .detection_records import ImageDetections
from .ground_truth import coco_detections

MOST_PROCESSES = 4  # each holds pycocotools' records of a run, a gigabyte or two for COCO's validation set
Item, Result = TypeVar('Item'), TypeVar('Result')

_function: Callable | None = None  # of a process that shares the work


def score_runs(truth: COCO, runs: Sequence[Sequence[ImageDetections]], *, num_draws: int) -> list[ImageMatches]:
    """Match the detections of each run, and draw its images for the bootstrap.

    Args:
        truth (COCO): of :func:`ground_truth`.
        runs (Sequence[Sequence[ImageDetections]]): detections of all images, of each run.
        num_draws (int): of the bootstrap.

    Returns:
        list[ImageMatches]: of each run.
    """
    def score(run: Sequence[ImageDetections]) -> ImageMatches:
        matches = match_detections(truth, coco_detections(run))
        aps_of_draws(matches, num_draws=num_draws)
        return matches

    return forked_map(score, runs)


def forked_map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``list(map(function, items))``, by as many processes as torch has threads, four at most.

    They are forks, so the function may know anything; it must run no torch, whose threads a fork has not. What it takes
    and gives is pickled. Where there is one thread, one item or no fork to be had, this process does it all.

    Raises:
        RuntimeError: if a process is killed.
    """
    number = min(torch.get_num_threads(), MOST_PROCESSES, len(items))
    if number < 2 or sys.platform != 'linux':
        return [function(item) for item in items]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)  # Python 3.12: of threads, which are torch's idle ones
            with ProcessPoolExecutor(number, multiprocessing.get_context('fork'), _start, (function, )) as processes:
                return list(processes.map(_call, items))
    except BrokenProcessPool as error:
        raise RuntimeError('a process that scores detections was killed, maybe for want of memory; with '
                           'OMP_NUM_THREADS=1 one after the other is scored, and what was tested is kept') from error


def _start(function: Callable) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer


def _call(item: object) -> object:
    return _function(item)
