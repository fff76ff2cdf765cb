"""Batches of random objects, odd ones among them, through losses and sampling.

``RANDOM_BATCHES=10000 pytest tests/test_random_batches.py`` for more than a plain run takes; ``RANDOM_BATCHES_FROM`` is
the first one's number, for a single one that failed.
"""

import os
import signal
import warnings
from contextlib import contextmanager

import pytest
import torch

from mmdet_diffusion.testing import build_detector, data_sample, small_model_cfg

FIRST, NUMBER = int(os.environ.get('RANDOM_BATCHES_FROM', 0)), int(os.environ.get('RANDOM_BATCHES', 100))
HEIGHT, WIDTH = 64, 96
NUM_CLASSES = 3
SECONDS = 60  # a batch takes hundredths of one
NAN, INFINITY = float('nan'), float('inf')


@contextmanager
def limited_time():
    def out_of_time(*_):
        raise TimeoutError(f'more than {SECONDS} s')

    previous = signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def pick(options, generator):
    return options[int(torch.randint(len(options), (), generator=generator))]


def uniform(shape, low, high, generator):
    return low + torch.rand(shape, generator=generator) * (high - low)


def ordinary(number, height, width, generator):
    corners = uniform((number, 2, 2), 0, 1, generator).sort(1).values * torch.tensor([width, height])
    return corners.flatten(1)


def point(number, height, width, generator):
    return ordinary(number, height, width, generator)[:, :2].repeat(1, 2)


def line(number, height, width, generator):
    boxes = ordinary(number, height, width, generator)
    boxes[:, 3] = boxes[:, 1]
    return boxes


def inverted(number, height, width, generator):
    return ordinary(number, height, width, generator)[:, [2, 3, 0, 1]]


def outside(number, height, width, generator):
    return ordinary(number, height, width, generator) + pick([-1000, 1000, 1e7], generator)


def across_the_edge(number, height, width, generator):
    return ordinary(number, height, width, generator) * 3 - 50


def equal(number, height, width, generator):
    return ordinary(1, height, width, generator).expand(number, -1).clone()


def tiny(number, height, width, generator):
    boxes = point(number, height, width, generator)
    boxes[:, 2:] += pick([1e-30, 1e-6, 1e-3], generator)
    return boxes


def huge(number, height, width, generator):
    return torch.tensor([-1.0, -1.0, 1.0, 1.0]).expand(number, -1) * pick([1e4, 1e8, 1e18, 3e38], generator)


def not_finite(number, height, width, generator):
    boxes = ordinary(number, height, width, generator)
    if number:
        row, side = (int(torch.randint(size, (), generator=generator)) for size in (number, 4))
        boxes[row, side] = pick([NAN, INFINITY, -INFINITY], generator)
    return boxes


KINDS = (ordinary, point, line, inverted, outside, across_the_edge, equal, tiny, huge, not_finite)


def random_sample(number, img_id, generator):
    """An image with objects of two kinds."""
    height, width = pick([(HEIGHT, WIDTH), (1, 1), (HEIGHT, 1), (17, 93)], generator)
    counts = (number // 2, number - number // 2)
    bboxes = torch.cat([pick(KINDS, generator)(count, height, width, generator) for count in counts])
    labels = torch.randint(NUM_CLASSES, (number, ), generator=generator)
    if number and int(torch.randint(40, (), generator=generator)) == 0:
        labels[-1] = pick([-1, NUM_CLASSES, 10**9], generator)
    return data_sample(bboxes, labels, (height, width), img_id=img_id)


def random_batch(seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = [pick([0, 0, 1, 1, 2, 3, 5, 8, 13, 40, 300, 2000], generator)
               for _ in range(pick([1, 2, 3], generator))]
    samples = [random_sample(number, f'{seed}_{place}', generator) for place, number in enumerate(numbers)]
    scale = pick([0, 1, 1, 1, 100], generator)
    feats = tuple(scale * torch.randn(len(samples), 16, HEIGHT // stride, WIDTH // stride, generator=generator)
                  for stride in (4, 8, 16, 32))
    return feats, samples, generator


def is_faulty(sample):
    instances = sample.gt_instances
    return not (instances.bboxes.abs() <= 1e9).all() or bool(((instances.labels < 0)
                                                          | (instances.labels >= NUM_CLASSES)).any())


@pytest.fixture(scope='module')
def head():
    return build_detector(small_model_cfg(num_classes=NUM_CLASSES)).bbox_head


def test_losses_and_gradients_are_finite_or_the_faulty_object_is_named(head):
    counts = dict(finite=0, refused=0)
    for seed in range(FIRST, FIRST + NUMBER):
        feats, samples, _ = random_batch(seed)
        feats = tuple(level.requires_grad_() for level in feats)
        head.zero_grad(set_to_none=True)
        torch.manual_seed(seed)
        faulty = [sample.img_id for sample in samples if is_faulty(sample)]
        with limited_time(), warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='(?s).*has no area within the image')
            if faulty:
                with pytest.raises(ValueError, match='|'.join(f'^image {name}: (ground-truth box|label)'
                                                              for name in faulty)):
                    head.loss(feats, samples)
                counts['refused'] += 1
                continue
            losses = head.loss(feats, samples)
            sum(losses.values()).backward()
        assert all(loss.isfinite() for loss in losses.values()), f'batch {seed}: {losses}'
        wrong = [name for name, value in head.named_parameters()
                 if value.grad is None or not value.grad.isfinite().all()]
        assert not wrong, f'batch {seed}: gradients of {wrong}'
        counts['finite'] += 1
    assert min(counts.values()) > NUMBER // 20, counts  # both happen


@torch.no_grad()
def test_every_sampling_ends_with_finite_boxes(head):
    for seed in range(FIRST, FIRST + NUMBER):
        feats, samples, generator = random_batch(seed)
        head.test_cfg = dict(
            num_proposals=pick([None, 1, 2, 33], generator), sampling_timesteps=pick([1, 1, 2, 4, 9], generator),
            eta=pick([0.0, 1.0], generator), renewal_score_thr=pick([None, 0.0, 0.5, 1.0], generator),
            ensemble=pick(['all', 'last'], generator), max_per_img=7, seed=pick([None, 3], generator))
        torch.manual_seed(seed)
        with limited_time():
            found = head.predict(feats, samples)
        assert len(found) == len(samples)
        for image in found:
            assert len(image.bboxes) <= 7, f'batch {seed}'
            assert image.bboxes.isfinite().all() and image.scores.isfinite().all(), f'batch {seed}'
