"""The counter sees every kind of wait, and says where it is."""

import numpy as np
import pytest
import torch

from mmdet_diffusion.operator_count import OperatorCount

VALUES = torch.arange(6.0).view(2, 3)
MASK = VALUES > 2
COUNTS = torch.tensor([1, 2])

READS = dict(
    item=lambda: VALUES[0, 0].item(), float=lambda: float(VALUES.sum()), truth=lambda: bool(MASK.any()),
    branch=lambda: 1 if MASK.all() else 0, slice_end=lambda: VALUES[:COUNTS[0]],
    nonzero=lambda: MASK.nonzero(), where=lambda: torch.where(MASK), masked_select=lambda: VALUES.masked_select(MASK),
    mask=lambda: VALUES[MASK], mask_of_rows=lambda: VALUES[MASK.any(1)], byte_mask=lambda: VALUES[0][MASK[0].byte()],
    assignment_by_mask=lambda: VALUES.clone().__setitem__(MASK, VALUES[1]), unique=lambda: VALUES.unique(),
    equal=lambda: torch.equal(VALUES, MASK), bincount=lambda: COUNTS.bincount(),
    repeat_interleave=lambda: VALUES.repeat_interleave(COUNTS, dim=0), tolist=lambda: VALUES.tolist(),
    numpy=lambda: VALUES.numpy(), array=lambda: np.asarray(VALUES), cpu=lambda: VALUES.cpu(),
    to_cpu=lambda: VALUES.to('cpu'))

NO_WAITS = dict(
    arithmetic=lambda: (VALUES * 2 + 1).sum(), gather=lambda: VALUES.gather(1, COUNTS[:, None]),
    index_by_numbers=lambda: VALUES[COUNTS - 1], where=lambda: torch.where(MASK, VALUES, 0.0),
    masked_fill=lambda: VALUES.masked_fill(MASK, 0.0), topk=lambda: VALUES.topk(2), sort=lambda: VALUES.sort(),
    repeat_with_size=lambda: COUNTS.repeat_interleave(COUNTS, output_size=3), unbind=lambda: list(VALUES),
    dtype=lambda: VALUES.to(torch.float64), device_of_another=lambda: (VALUES + 1).to(COUNTS.device),
    shape=lambda: VALUES.size(0), backward=lambda: _gradient())


def _gradient():
    weights = torch.ones(3, requires_grad=True)
    (VALUES @ weights).sum().backward()


@pytest.mark.parametrize('kind', READS)
def test_each_kind_of_read_is_seen_once(kind):
    with OperatorCount() as count:
        READS[kind]()
    assert len(count.reads) == 1, count.places()


@pytest.mark.parametrize('kind', NO_WAITS)
def test_what_a_gpu_does_alone_is_no_wait(kind):
    with OperatorCount() as count:
        NO_WAITS[kind]()
    assert not count.places()
    assert count.operators > 0 or kind == 'shape'


ON_META = torch.empty(2, 3, device='meta')
UPLOADS = dict(
    tensor=lambda: torch.tensor([1.0, 2.0], device='meta'), new_tensor=lambda: ON_META.new_tensor([1.0]),
    tensor_by_keyword=lambda: torch.tensor(data=[1.0], device='meta'),
    new_tensor_by_keyword=lambda: ON_META.new_tensor(data=[1.0]),
    as_tensor=lambda: torch.as_tensor([1.0], device='meta'),
    as_tensor_of_a_tensor=lambda: torch.as_tensor(VALUES, device='meta'),
    to=lambda: VALUES.to('meta'),
    to_like=lambda: VALUES.to(ON_META), copy=lambda: torch.empty_like(ON_META).copy_(VALUES),
    to_from_ordinary_memory=lambda: VALUES.to('meta', non_blocking=True),
    copy_from_ordinary_memory=lambda: torch.empty_like(ON_META).copy_(VALUES, non_blocking=True),
    copy_by_position=lambda: torch.empty_like(ON_META).copy_(VALUES, True))


@pytest.mark.parametrize('kind', UPLOADS)
def test_each_kind_of_upload_that_may_wait_is_seen_once(kind):
    with OperatorCount('meta') as count:
        UPLOADS[kind]()
    assert len(count.uploads) == 1 and not count.reads and not count.pinned_uploads, count.places()


@pytest.mark.parametrize('copy', [lambda values: values.to('meta', non_blocking=True),
                                  lambda values: torch.empty_like(ON_META).copy_(values, non_blocking=True),
                                  lambda values: torch.empty_like(ON_META).copy_(values, True)])
def test_a_copy_from_page_locked_memory_is_seen_and_is_no_wait(page_locked_memory, copy):
    with OperatorCount('meta') as count:
        copy(VALUES.pin_memory())
    assert len(count.pinned_uploads) == 1 and not count.places()


def test_a_blocking_copy_from_page_locked_memory_is_a_wait(page_locked_memory):
    with OperatorCount('meta') as count:
        VALUES.pin_memory().to('meta')
    assert len(count.uploads) == 1 and not count.pinned_uploads


def test_values_that_are_filled_in_are_no_upload():
    with OperatorCount('meta') as count:
        torch.full((2, ), 3.0, device='meta')
    assert not count.places() and not count.pinned_uploads


@pytest.mark.parametrize('read', [lambda: ON_META.cpu(), lambda: ON_META.to(torch.device('cpu')),
                                  lambda: ON_META.tolist(), lambda: ON_META.sum().item(),
                                  lambda: ON_META.nonzero(), lambda: ON_META[ON_META > 0]])
def test_a_read_on_the_meta_device_counts_once_and_raises(read):
    with OperatorCount('meta') as count, pytest.raises((RuntimeError, NotImplementedError)):
        read()
    assert len(count.reads) == 1 and not count.uploads


def test_reading_a_host_table_is_no_wait_while_another_device_counts():
    with OperatorCount('meta') as count:
        VALUES[0, 0].item()
        VALUES.tolist()
        torch.tensor([1.0])
    assert not count.places()


def test_the_place_is_the_callers_line():
    with OperatorCount() as count:
        VALUES.sum().item()
    place, times = count.places().popitem()
    line = test_the_place_is_the_callers_line.__code__.co_firstlineno + 2
    assert (place, times) == (f'_local_scalar_dense at {__name__}:{line}', 1)


def test_counting_ends_with_the_block():
    with OperatorCount() as count:
        VALUES.add(1)
    VALUES.add(1).tolist()
    assert count.operators == 1 and not count.reads


def test_operators_of_the_backward_pass_count():
    weights = torch.ones(3, requires_grad=True)
    with OperatorCount() as forward:
        loss = (VALUES @ weights).sum()
    with OperatorCount() as backward:
        loss.backward()
    assert forward.operators > 0 and backward.operators > 0
