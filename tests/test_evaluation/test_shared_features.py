"""Many settings of one model on features that are computed once."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdet_diffusion.evaluation import shared_features
from mmdet_diffusion.evaluation.detection_records import CellRecords, ImageDetections
from mmdet_diffusion.evaluation.shared_features import held_last_step
from mmdet_diffusion.evaluation.shared_features import test_cells as fill_cells
from mmdet_diffusion.testing import build_detector, data_sample, small_model_cfg

SETTINGS = {
    'one': dict(sampling_timesteps=1, num_proposals=10, seed=0),
    'many': dict(sampling_timesteps=3, num_proposals=25, seed=1, eta=0.5),
    'unrenewed': dict(sampling_timesteps=2, num_proposals=7, seed=0, renewal_score_thr=None, nms=None),
}


@pytest.fixture(scope='module')
def model():
    return build_detector(small_model_cfg()).eval()


def batches(number=5, size=2):
    generator = torch.Generator().manual_seed(0)
    for first in range(0, number * size, size):
        yield dict(inputs=list(torch.randint(256, (size, 3, 64, 96), dtype=torch.uint8, generator=generator)),
                   data_samples=[data_sample(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), (64, 96),
                                             ori_shape=(32, 48), scale_factor=(2.0, 2.0), img_id=first + place)
                                 for place in range(size)])


def cells(folder, names=SETTINGS):
    return {CellRecords(folder, dict(name=name)): SETTINGS[name] for name in names}


def count_features(model, monkeypatch):
    calls = []
    backbone = model.backbone.forward
    monkeypatch.setattr(model.backbone, 'forward', lambda images: calls.append(len(images)) or backbone(images))
    return calls


def test_each_setting_gives_what_a_test_of_it_alone_gives(model, tmp_path):
    wanted = cells(tmp_path)
    num_chunks = fill_cells(model, list(batches()), wanted)
    configured = model.bbox_head.test_cfg
    for cell, settings in wanted.items():
        model.bbox_head.test_cfg = dict(configured, **settings)
        expected = [sample.pred_instances for batch in batches()
                    for sample in model.test_step(batch)]
        found = cell.read(num_chunks, 10)
        assert len(found) == len(expected) == 10
        for one, other in zip(found, expected, strict=True):
            for name in ('bboxes', 'scores', 'labels'):
                assert np.array_equal(getattr(one, name), other[name].numpy()), name
    model.bbox_head.test_cfg = configured


def test_the_backbone_runs_once_a_batch_and_the_model_is_as_before(model, tmp_path, monkeypatch):
    calls, configured = count_features(model, monkeypatch), model.bbox_head.test_cfg
    fill_cells(model, list(batches()), cells(tmp_path))
    assert calls == [2] * 5
    assert model.bbox_head.test_cfg is configured and 'extract_feat' not in vars(model)


def test_settings_of_as_many_boxes_and_one_seed_share_their_first_step(model, tmp_path, monkeypatch):
    settings = {f'{steps}x{boxes}': dict(sampling_timesteps=steps, num_proposals=boxes, seed=seed)
                for steps, boxes, seed in ((1, 10, 0), (2, 10, 0), (4, 10, 0), (2, 12, 0), (1, 14, 1))}
    settings['held'] = dict(settings['4x10'], held_step=True, renewal_score_thr=1.0)
    wanted = {CellRecords(tmp_path, dict(name=name)): one for name, one in settings.items()}
    head, calls = model.bbox_head, []
    refine = head._refine
    monkeypatch.setattr(head, '_refine', lambda *args: calls.append(args[1].shape[1]) or refine(*args))
    batch = list(batches(number=1))
    num_chunks = fill_cells(model, batch, wanted)
    assert calls == [10, 10, 10, 10, 10, 12, 12, 14, 10, 10, 10]  # of 15 steps, 4 of them first ones
    monkeypatch.undo()
    assert '_refine' not in vars(head)
    for cell, one in list(wanted.items())[:5]:  # as each alone
        alone = {CellRecords(tmp_path / 'alone', dict(one)): one}
        fill_cells(model, batch, alone)
        for found, expected in zip(cell.read(num_chunks, 2), next(iter(alone)).read(num_chunks, 2), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(found[:3], expected[:3], strict=True))


def test_the_time_of_a_shared_step_counts_in_each_setting(model, tmp_path, monkeypatch):
    settings = [dict(sampling_timesteps=steps, num_proposals=10, seed=0) for steps in (1, 2)]
    wanted = {CellRecords(tmp_path, one): one for one in settings}
    head, clock = model.bbox_head, [0.0]
    refine = head._refine

    def slow(*args):
        clock[0] += 1
        return refine(*args)

    monkeypatch.setattr(head, '_refine', slow)
    monkeypatch.setattr(time, 'perf_counter', lambda: clock[0])
    num_chunks = fill_cells(model, list(batches(number=1, size=2)), wanted)
    assert [cell.read(num_chunks, 2)[0].seconds[1] for cell in wanted] == [1 / 2, 2 / 2]  # an image of two
    assert clock[0] == 2


def test_a_run_that_was_ended_goes_on_after_its_last_chunk(model, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_features, 'IMAGES_A_CHUNK', 4)
    whole = cells(tmp_path / 'whole')
    num_chunks = fill_cells(model, list(batches()), whole)

    def ending():
        for place, batch in enumerate(batches()):
            if place == 3:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        fill_cells(model, ending(), cells(tmp_path / 'ended'))
    calls = count_features(model, monkeypatch)
    again = cells(tmp_path / 'ended')
    assert fill_cells(model, list(batches()), again) == num_chunks == 3
    assert calls == [2] * 3  # the first chunk, of two batches, was there
    for one, other in zip(whole, again, strict=True):
        for a, b in zip(one.read(3, 10), other.read(3, 10), strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))
    assert not list(Path(tmp_path).rglob('.*.npz'))


def test_a_new_setting_is_computed_without_the_others(model, tmp_path, monkeypatch):
    fill_cells(model, list(batches()), cells(tmp_path, ['one']))
    seen, predict = [], model.bbox_head.predict
    monkeypatch.setattr(model.bbox_head, 'predict', lambda *args, **kwargs: (
        seen.append(model.bbox_head.test_cfg['num_proposals']), predict(*args, **kwargs))[1])
    fill_cells(model, list(batches()), cells(tmp_path, ['one', 'many']))
    assert set(seen) == {25}


def test_a_chunk_that_another_process_finishes_meanwhile_stays_whole(model, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_features, 'IMAGES_A_CHUNK', 4)
    (cell, ), (other, ) = cells(tmp_path / 'one', ['one']), cells(tmp_path / 'other', ['one'])
    fill_cells(model, list(batches()), {other: SETTINGS['one']})

    def meanwhile():
        for place, batch in enumerate(batches()):
            if place == 1:  # in the middle of the first chunk
                (other.folder / '00000.npz').rename(cell.folder / '00000.npz')
            yield batch

    num_chunks = fill_cells(model, meanwhile(), {cell: SETTINGS['one']})
    assert len(cell.read(num_chunks, 10)) == 10
    with pytest.raises(ValueError, match='holds detections of 10 images, the data set has 11; remove the folder'):
        cell.read(num_chunks, 11)


def test_batches_larger_than_a_chunk_are_a_chunk_each(model, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_features, 'IMAGES_A_CHUNK', 1)
    wanted = cells(tmp_path, ['one'])
    assert fill_cells(model, list(batches()), wanted) == 5
    assert len(next(iter(wanted)).read(5, 10)) == 10


def test_a_held_step_is_the_last_one_at_every_step(model):
    seen = []
    hook = model.bbox_head.time_embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0].tolist()))
    batch = model.data_preprocessor(next(batches()), False)
    settings = dict(model.bbox_head.test_cfg, sampling_timesteps=3)
    configured, model.bbox_head.test_cfg = model.bbox_head.test_cfg, settings
    with torch.no_grad(), held_last_step(model.bbox_head):
        model.predict(batch['inputs'], batch['data_samples'])
    with torch.no_grad():
        model.predict(batch['inputs'], batch['data_samples'])
    hook.remove()
    model.bbox_head.test_cfg = configured
    assert seen == [[999, 999]] * 3 + [[999, 999], [665, 665], [332, 332]]


def test_records_come_back_as_they_were_with_images_without_detections(tmp_path):
    cell = CellRecords(tmp_path, dict(a=1))
    images = [ImageDetections(np.random.rand(n, 4).astype(np.float32), np.random.rand(n).astype(np.float32),
                              np.arange(n), (0.25, n / 4)) for n in (3, 0, 2)]
    cell.write(0, images[:2])
    assert CellRecords(tmp_path, dict(a=1)).has(0) and not CellRecords(tmp_path, dict(a=2)).has(0)
    with pytest.raises(FileNotFoundError):
        cell.read(2, 3)
    cell.write(1, images[2:])
    for one, other in zip(cell.read(2, 3), images, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))
