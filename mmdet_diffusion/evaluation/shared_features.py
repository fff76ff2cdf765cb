"""Many settings of one model on the same images: backbone and neck run once a batch, the head once a setting.

Settings of as many boxes and one seed share their first step too, whose time counts in each of them.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from mmdet.structures import DetDataSample
from torch import nn
from torch.utils.data import DataLoader

from ..detectors import DiffusionDet
from ..detectors.several_predictions import FirstSteps, at_settings, features_once, refined_by, wait_for
from .detection_records import CellRecords, ImageDetections

IMAGES_A_CHUNK = 32  # an interrupted run loses at most so many
HELD_STEP = 'held_step'  # a setting of a cell that is none of test_cfg: see held_last_step


def test_cells(model: DiffusionDet, loader: DataLoader, cells: Mapping[CellRecords, Mapping[str, object]], *,
               progress: Callable[[int], None] = lambda images: None) -> int:
    """Fill the records of all cells that are not there yet.

    Args:
        model (DiffusionDet): in evaluation mode.
        loader (DataLoader): of the test set, in its order.
        cells (Mapping[CellRecords, Mapping[str, object]]): changes of ``test_cfg`` of each cell, with a ``seed``;
            ``held_step=True`` besides holds the diffusion step at the last one.
        progress (Callable[[int], None]): told the number of images after each batch.

    Returns:
        int: chunks of the data set.
    """
    return _fill(loader, list(cells), lambda batch, missing: _test_batch(
        model, batch, {cell: cells[cell] for cell in missing}), progress)


def test_detector(model: nn.Module, loader: DataLoader, cell: CellRecords, *,
                  progress: Callable[[int], None] = lambda images: None) -> int:
    """Fill the records of a detector of any kind, as it is configured; see :func:`test_cells`."""
    return _fill(loader, [cell], lambda batch, missing: _test_whole(model, batch, missing), progress)


def _fill(loader: DataLoader, cells: Sequence[CellRecords],
          run: Callable[[dict, list[CellRecords]], Iterator[tuple[CellRecords, list[ImageDetections]]]],
          progress: Callable[[int], None]) -> int:
    chunk, in_chunk, buffers, missing = 0, 0, {cell: [] for cell in cells}, []
    for batch in loader:
        images = len(batch['data_samples'])
        if not in_chunk:  # once a chunk: another process may be writing it
            missing = [cell for cell in cells if not cell.has(chunk)]
        for cell, found in run(batch, missing):
            buffers[cell] += found
        in_chunk += images
        progress(images)
        if in_chunk >= IMAGES_A_CHUNK:
            _flush(buffers, chunk)
            chunk, in_chunk = chunk + 1, 0
    if in_chunk:
        _flush(buffers, chunk)
        chunk += 1
    return chunk


def _flush(buffers: Mapping[CellRecords, list[ImageDetections]], chunk: int) -> None:
    for cell, images in buffers.items():
        if images:  # else the chunk was there
            cell.write(chunk, images)
            images.clear()


@torch.no_grad()
def _test_batch(model: DiffusionDet, batch: dict, cells: Mapping[CellRecords, Mapping[str, object]]
                ) -> Iterator[tuple[CellRecords, list[ImageDetections]]]:
    if not cells:
        return
    data = model.data_preprocessor(batch, False)
    head = model.bbox_head
    first_steps = FirstSteps(head)
    with features_once(model) as seconds:
        for cell, settings in cells.items():
            changes = {name: value for name, value in settings.items() if name != HELD_STEP}
            seconds['here'] = 0.0
            wait_for(data['inputs'].device)
            start = time.perf_counter()
            with (at_settings(head, changes), first_steps.once(),
                  held_last_step(head, bool(settings.get(HELD_STEP)))):
                samples = model.predict(data['inputs'], data['data_samples'])
            wait_for(data['inputs'].device)
            elapsed = time.perf_counter() - start - seconds['here'] + first_steps.seconds
            number = len(samples)
            yield cell, [_kept(sample, (seconds['all'] / number, elapsed / number)) for sample in samples]


@torch.no_grad()
def _test_whole(model: nn.Module, batch: dict, cells: Sequence[CellRecords]
                ) -> Iterator[tuple[CellRecords, list[ImageDetections]]]:
    for cell in cells:
        data = model.data_preprocessor(batch, False)
        wait_for(data['inputs'].device)
        start = time.perf_counter()
        samples = model(**data, mode='predict')
        wait_for(data['inputs'].device)
        elapsed = (time.perf_counter() - start) / len(samples)
        yield cell, [_kept(sample, (0.0, elapsed)) for sample in samples]


@contextmanager
def held_last_step(head: nn.Module, held: bool = True) -> Iterator[None]:
    """A control: the head is told the last diffusion step, where sampling starts, at every step.

    With ``renewal_score_thr=1.0``, which makes all boxes anew after each step, four steps are four samplings of one
    step whose detections are put together.
    """
    if not held:
        yield
        return
    last = head.box_sampler.num_train_timesteps - 1
    with refined_by(head, lambda features, bboxes, t: before(features, bboxes, torch.full_like(t, last))) as before:
        yield


def _kept(sample: DetDataSample, seconds: tuple[float, float]) -> ImageDetections:
    found = sample.pred_instances.cpu()
    return ImageDetections(found.bboxes.float().numpy(), found.scores.float().numpy(), found.labels.numpy(), seconds)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 90th and 99th percentile."""
    values = torch.tensor(seconds, dtype=torch.float64)
    return {f'p{share}': torch.quantile(values, share / 100).item() for share in (50, 90, 99)}
