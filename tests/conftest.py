"""Test files import mmcv.ops before mmdet_diffusion, which would make the stand-ins available."""

import pytest
import torch

import mmcv_stand_in

mmcv_stand_in.install()


def pytest_collection_modifyitems(items):
    """Files with minutes-long tests first: of files that processes share, one that starts last would end alone."""
    long = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture
def page_locked_memory(monkeypatch):
    """Page-locked memory where there is no GPU: a copy that calls itself so, for meta, which takes a GPU's part."""
    from mmdet_diffusion.ops import host_and_device

    locked = []

    def pin_memory(values):
        locked.append(values.clone())
        return locked[-1]

    monkeypatch.setattr(torch.Tensor, 'pin_memory', pin_memory)
    monkeypatch.setattr(torch.Tensor, 'is_pinned',
                        lambda values: any(values.data_ptr() == other.data_ptr() for other in locked))
    monkeypatch.setattr(host_and_device, 'PINNED_FOR', {'meta'})
