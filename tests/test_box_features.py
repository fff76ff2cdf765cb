"""What autograd keeps of RoI features: large ones are gathered again, and nothing else changes."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from mmdet_diffusion.roi_extractors import PyramidRoIExtractor, box_features
from mmdet_diffusion.testing import build_detector, data_sample, random_boxes, small_model_cfg

SHAPE = (64, 96)


@pytest.fixture
def features_are_large(monkeypatch):
    monkeypatch.setattr(box_features, 'LARGE', 1)


def looked_up(generator):
    levels = tuple(torch.randn(2, 8, 64 // stride, 96 // stride, generator=generator).requires_grad_()
                   for stride in (4, 8, 16, 32))
    look_up = PyramidRoIExtractor(out_channels=8)(levels)
    bboxes = torch.stack([random_boxes(5, SHAPE, generator) for _ in range(2)])
    return levels, look_up, bboxes


def gradients(generator, change=lambda features: features):
    """Of the levels, through a product that needs the features again, and whether their memory was kept for it."""
    levels, look_up, bboxes = looked_up(generator)
    weight = torch.randn(10, 8, 4, generator=generator).requires_grad_()
    features = look_up(bboxes)
    with look_up.not_kept(features, bboxes, 100):
        result = (change(features) @ weight).square().sum()
    memory = StorageWeakRef(features.untyped_storage())
    del features
    kept = not memory.expired()
    return torch.autograd.grad(result, (*levels, weight), allow_unused=True), kept


def test_small_features_are_kept():
    assert gradients(torch.Generator().manual_seed(0))[1]


def test_large_features_are_not_kept_and_gradients_are_the_same(request):
    plain, _ = gradients(torch.Generator().manual_seed(0))
    request.getfixturevalue('features_are_large')
    again, kept = gradients(torch.Generator().manual_seed(0))
    assert not kept
    for value, wanted in zip(again, plain, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=0)


@pytest.mark.parametrize('change', [
    lambda features: features.mul_(3), torch.relu_, lambda features: features.clone().sigmoid_(), torch.neg
])
def test_features_that_are_written_into_give_the_same_gradients(request, change):
    plain, _ = gradients(torch.Generator().manual_seed(0), change)
    request.getfixturevalue('features_are_large')
    again, _ = gradients(torch.Generator().manual_seed(0), change)
    for value, wanted in zip(again, plain, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=0)


def test_boxes_that_were_written_into_are_an_error(features_are_large):
    levels, look_up, bboxes = looked_up(torch.Generator().manual_seed(0))
    features = look_up(bboxes)
    with look_up.not_kept(features, bboxes, 100):
        result = features.square().sum()
    bboxes += 1
    with pytest.raises(RuntimeError, match='boxes were written into'):
        torch.autograd.grad(result, levels[0])


def test_features_smaller_than_their_table_are_kept(features_are_large):
    _, look_up, bboxes = looked_up(torch.Generator().manual_seed(0))
    features, table = look_up(bboxes), look_up.pyramid.table
    enough = table.numel() // features.numel() + 1
    assert isinstance(look_up.not_kept(features, bboxes, enough), saved_tensors_hooks)
    assert not isinstance(look_up.not_kept(features, bboxes, enough - 1), saved_tensors_hooks)


def test_nothing_is_arranged_where_no_gradient_is_wanted(features_are_large):
    _, look_up, bboxes = looked_up(torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = look_up(bboxes)
    assert not isinstance(look_up.not_kept(features, bboxes, 100), saved_tensors_hooks)


@pytest.mark.parametrize('autocast', [False, True])
def test_a_training_step_gathers_each_stage_twice_and_learns_the_same(monkeypatch, autocast):
    generator = torch.Generator().manual_seed(0)
    model = build_detector(small_model_cfg()).train()
    samples = [data_sample(random_boxes(3, SHAPE, generator), torch.tensor([0, 1, 2]), SHAPE, img_id=0)]
    image = torch.randn((1, 3, *SHAPE), generator=generator)
    calls, gather = [], box_features.roi_align_rows

    def counted(*args):
        calls.append(None)
        return gather(*args)

    monkeypatch.setattr(box_features, 'roi_align_rows', counted)

    def step():
        torch.manual_seed(0)
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            losses = model.loss(image, samples)
        forward = len(calls)
        sum(losses.values()).backward()
        found = forward, len(calls) - forward, [parameter.grad.clone() for parameter in model.bbox_head.parameters()]
        calls.clear()
        return found

    stages = len(model.bbox_head.stages)
    forward, backward, wanted = step()
    assert (forward, backward) == (stages, 0)
    monkeypatch.setattr(box_features, 'LARGE', 1)
    forward, backward, found = step()
    # Under autocast the product keeps a copy in half precision, and the features themselves are free anyway.
    assert (forward, backward) == (stages, 0 if autocast else stages)
    for value, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
