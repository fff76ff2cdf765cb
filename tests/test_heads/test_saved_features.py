"""What autograd keeps of a head's RoI features is in the hands of the user."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from mmdet_diffusion.roi_extractors import pyramid_roi_extractor
from mmdet_diffusion.testing import build_detector, random_boxes, small_model_cfg

SHAPE = (64, 96)
BOXES, CHANNELS = 352, 256  # their RoI features are 17 MiB


@pytest.fixture(scope='module')
def head():
    return build_detector(small_model_cfg(feat_channels=CHANNELS, num_proposals=BOXES)).bbox_head


def inputs():
    generator = torch.Generator().manual_seed(0)
    levels = tuple(torch.randn(1, CHANNELS, SHAPE[0] // stride, SHAPE[1] // stride, generator=generator)
                   .requires_grad_() for stride in (4, 8, 16, 32))
    return levels, random_boxes(BOXES, SHAPE, generator)[None], torch.tensor([500])


def test_hooks_on_saved_tensors_see_the_roi_features_of_every_stage(head):
    seen = []

    def pack(saved):
        seen.append(saved.untyped_storage().data_ptr() if saved.numel() == BOXES * 49 * CHANNELS else None)
        return saved

    with saved_tensors_hooks(pack, lambda saved: saved):
        outputs = head(*inputs())
    assert len(set(seen) - {None}) >= len(head.stages)
    assert outputs.bboxes.requires_grad


def test_features_are_gathered_once_a_stage(head, monkeypatch):
    calls, gather = [], pyramid_roi_extractor.roi_align_rows
    monkeypatch.setattr(pyramid_roi_extractor, 'roi_align_rows', lambda *args: calls.append(None) or gather(*args))
    outputs = head(*inputs())
    (outputs.bboxes.sum() + outputs.cls_scores.sum()).backward()
    head.zero_grad()
    assert len(calls) == len(head.stages)


def test_a_checkpoint_around_the_head_gives_the_same_gradients(head):
    found = []
    for run in (head, lambda *args: checkpoint(head, *args, use_reentrant=False)):
        levels, *rest = inputs()
        outputs = run(levels, *rest)
        found.append(torch.autograd.grad(outputs.bboxes.square().mean() + outputs.cls_scores.sum(), levels))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
