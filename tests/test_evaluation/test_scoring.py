"""Scoring in several processes gives what one gives."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from unittest import mock

import numpy as np
import pytest
import torch
from made_detections import made_detections, made_objects

from mmdet_diffusion.evaluation.bootstrap import Contestant, interval
from mmdet_diffusion.evaluation.detection_records import ImageDetections
from mmdet_diffusion.evaluation.scoring import forked_map, score_runs

forks = pytest.mark.skipif(sys.platform != 'linux', reason='forks where they are safe')


@pytest.fixture(name='threads')
def _threads(monkeypatch):
    """Sets the number of torch's threads, by which processes are counted, on a machine of two cores."""
    if sys.platform == 'linux':
        monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 1})
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@forks
def test_processes_share_the_items_and_keep_their_order(threads):
    threads(2)
    both = multiprocessing.get_context('fork').Barrier(2, timeout=60)  # passed only if two work at once

    def square(place):
        if place < 2:
            both.wait()
        return known[place], os.getpid()

    known = {place: place**2 for place in range(7)}  # nothing that is pickled
    found = forked_map(square, range(7))
    assert [value for value, _ in found] == [known[place] for place in range(7)]
    assert len({process for _, process in found} - {os.getpid()}) == 2
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(('number', 'items'), [(1, 3), (2, 1), (2, 0)])
def test_one_thread_or_one_item_stays_in_this_process(threads, number, items):
    threads(number)
    assert forked_map(lambda item: os.getpid(), range(items)) == [os.getpid()] * items


@forks
@pytest.mark.parametrize('kind', [ZeroDivisionError, OSError, EOFError])
def test_an_error_comes_back_as_it_was(threads, kind, capfd):
    threads(2)

    def fail(item):
        raise kind(f'of {item}')

    with pytest.raises(kind, match='of 0'):
        forked_map(fail, range(3))
    assert not multiprocessing.active_children() and capfd.readouterr() == ('', '')


@forks
def test_where_a_process_is_killed_this_one_does_it_all(threads, capfd):
    threads(2)
    parent = os.getpid()

    def killed_elsewhere(item):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    assert forked_map(killed_elsewhere, range(3)) == [0, 1, 2]
    assert 'several processes cannot score' in capfd.readouterr().out


@forks
def test_where_none_can_be_started_this_one_does_it_all(threads, monkeypatch, capfd):
    threads(2)
    monkeypatch.setattr(os, 'fork', mock.Mock(side_effect=BlockingIOError('too many')))
    assert forked_map(lambda item: os.getpid(), range(3)) == [os.getpid()] * 3
    assert 'too many' in capfd.readouterr().out


@forks
def test_an_interrupt_ends_all_at_once(threads, capfd):
    threads(2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever starts the tests may ignore it
    start, timer = time.monotonic(), threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            forked_map(lambda item: time.sleep(60), range(9))
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 30 and not multiprocessing.active_children()
    assert capfd.readouterr().err == ''


def made_run(truth, seed):
    images = [[] for _ in truth.imgs]
    for one in made_detections(truth, seed):
        images[one['image_id'] - 1].append(one)
    return [ImageDetections(np.array([[x, y, x + w, y + h] for x, y, w, h in (one['bbox'] for one in image)],
                                     np.float32).reshape(-1, 4),
                            np.array([one['score'] for one in image], np.float32),
                            np.array([one['category_id'] - 1 for one in image], int), (0.0, 0.0)) for image in images]


@forks
def test_figures_do_not_depend_on_the_number_of_processes(threads):
    truth = made_objects()
    runs = [made_run(truth, seed) for seed in range(3)]
    found = []
    for number in (1, 2):
        threads(number)
        scored = score_runs(truth, runs, num_draws=20)
        assert all(list(matches.draws) == [(20, 0, 1)] for matches in scored)
        found.append(([matches.summary() for matches in scored], interval(Contestant('', [scored]), num_draws=20)))
    assert found[0] == found[1]
    assert len({summary['AP'] for summary in found[0][0]}) == 3
