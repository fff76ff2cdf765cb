"""Scoring in several processes gives what one gives."""

import os
import signal
import sys

import numpy as np
import pytest
import torch
from made_detections import made_detections, made_objects

from mmdet_diffusion.evaluation.bootstrap import Contestant, interval
from mmdet_diffusion.evaluation.detection_records import ImageDetections
from mmdet_diffusion.evaluation.scoring import forked_map, score_runs

forks = pytest.mark.skipif(sys.platform != 'linux', reason='forks where they are safe')


@pytest.fixture(name='threads')
def _threads():
    """Sets the number of torch's threads, by which processes are counted."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@forks
def test_processes_share_the_items_and_keep_their_order(threads):
    threads(2)
    known = {place: place**2 for place in range(7)}  # nothing that is pickled
    found = forked_map(lambda place: (known[place], os.getpid()), range(7))
    assert [value for value, _ in found] == [known[place] for place in range(7)]
    assert os.getpid() not in {process for _, process in found}


@pytest.mark.parametrize(('number', 'items'), [(1, 3), (2, 1), (2, 0)])
def test_one_thread_or_one_item_stays_in_this_process(threads, number, items):
    threads(number)
    assert forked_map(lambda item: os.getpid(), range(items)) == [os.getpid()] * items


@forks
def test_an_error_comes_back_as_it_was(threads):
    threads(2)
    with pytest.raises(ZeroDivisionError):
        forked_map(lambda item: 1 // item, [1, 0])


@forks
def test_a_killed_process_is_said(threads):
    threads(2)
    with pytest.raises(RuntimeError, match='was killed, maybe for want of memory; with OMP_NUM_THREADS=1'):
        forked_map(lambda item: os.kill(os.getpid(), signal.SIGKILL), range(2))


def made_run(truth, seed):
    images = [[] for _ in truth.imgs]
    for one in made_detections(truth, seed):
        images[one['image_id'] - 1].append(one)
    return [ImageDetections(np.array([[x, y, x + w, y + h] for x, y, w, h in (one['bbox'] for one in image)],
                                     np.float32).reshape(-1, 4),
                            np.array([one['score'] for one in image], np.float32),
                            np.array([one['category_id'] - 1 for one in image], int), (0.0, 0.0)) for image in images]


def test_figures_do_not_depend_on_the_number_of_processes(threads):
    truth = made_objects()
    runs = [made_run(truth, seed) for seed in range(3)]
    found = []
    for number in (1, 2):
        threads(number)
        scored = score_runs(truth, runs, num_draws=20)
        assert all(list(matches.draws) == [(20, 0)] for matches in scored)
        found.append(([matches.summary() for matches in scored], interval(Contestant('', [scored]), num_draws=20)))
    assert found[0] == found[1]
    assert len({summary['AP'] for summary in found[0][0]}) == 3
