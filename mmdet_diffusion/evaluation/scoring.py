"""Scoring of many runs, which takes one core each: shared among processes."""

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple, TypeVar

import torch
from pycocotools.coco import COCO

from .average_precision import ImageMatches, match_detections
from .bootstrap import aps_of_draws
from .detection_records import ImageDetections
from .ground_truth import coco_detections

MOST_PROCESSES = 4  # each holds pycocotools' records of a run, a gigabyte or two for COCO's validation set
Item, Result = TypeVar('Item'), TypeVar('Result')


def score_runs(truth: COCO, runs: Sequence[Sequence[ImageDetections]], *, num_draws: int) -> list[ImageMatches]:
    """Match the detections of each run, and draw its images as :func:`interval` and :func:`difference` will ask for.

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


class _Answer(NamedTuple):
    """Of a process for one item: one of the two."""

    result: object = None
    error: Exception | None = None


def forked_map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``list(map(function, items))``, by as many processes as torch has threads and this one has cores, four at most.

    They are forks, so the function may know anything; what it gives is pickled. It must run neither torch nor BLAS,
    whose threads a fork has not. With one process, on other systems than Linux, and where processes cannot be started
    or are killed, this one does it all.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == 'linux' else 1
    number = min(torch.get_num_threads(), cores, MOST_PROCESSES, len(items))
    if number < 2:
        return [function(item) for item in items]
    try:
        answers = _answers(function, items, number)
    except (OSError, EOFError) as error:
        print(f'several processes cannot score ({type(error).__name__}: {error}; memory may be short): one after the '
              'other', flush=True)
        return [function(item) for item in items]
    for answer in answers:
        if answer.error is not None:
            raise answer.error
    return [answer.result for answer in answers]


def _answers(function: Callable, items: Sequence, number: int) -> list[_Answer]:
    context, workers = multiprocessing.get_context('fork'), []
    try:
        for place in range(number):
            receiver, sender = context.Pipe(duplex=False)
            worker = context.Process(target=_work, args=(function, items[place::number], sender), daemon=True)
            with warnings.catch_warnings():
                warnings.filterwarnings('ignore', '.*multi-threaded, use of fork', DeprecationWarning)  # torch's, idle
                worker.start()
            sender.close()  # so that its end shows here
            workers.append((worker, receiver))
        return [workers[place % number][1].recv() for place in range(len(items))]
    finally:
        for worker, receiver in workers:
            worker.kill()
            worker.join()
            receiver.close()


def _work(function: Callable, items: Sequence, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends at Ctrl-C without a word; the parent has the say
    for item in items:
        try:
            answer = _Answer(result=function(item))
        except Exception as error:  # raised by the parent
            answer = _Answer(error=error)
        sender.send(answer)
