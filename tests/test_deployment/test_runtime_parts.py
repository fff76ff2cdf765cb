"""Each part of the torch-free run-time against the torch code that it stands for."""

import math
import os
import struct
import subprocess
import sys

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmcv.ops import batched_nms
from mmengine.structures import InstanceData
from PIL import Image

from diffusiondet_runtime import ExportError, even_noise, memory, pictures, post_processing, sampling
from diffusiondet_runtime.frames import frame_of
from mmdet_diffusion import post_processing as torch_post
from mmdet_diffusion.diffusion import ddim_step, sampling_time_pairs
from mmdet_diffusion.heads import SamplingSettings
from mmdet_diffusion.structures import Detections
from mmdet_diffusion.task_modules import DiffusionBoxSampler
from mmdet_diffusion.task_modules import even_noise as torch_even_noise
from mmdet_diffusion.testing import REPOSITORY

WHWH = torch.tensor([[640.0, 480, 640, 480], [333, 500, 333, 500]])


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# Sampling -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('eta', [0.0, 0.4, 1.0])
@pytest.mark.parametrize('steps', [1, 2, 4, 5, 7, 8, 1000])
def test_coefficients_and_times_are_those_of_torch(steps, eta):
    sampler = DiffusionBoxSampler()
    ours = sampling.coefficients(sampler.schedule.alpha_bar.tolist(), steps, eta)
    assert [(step.t, step.t_next) for step in ours] == sampling_time_pairs(1000, steps)
    x_t, x_start, noise = (value.double() for value in normal(3, 50, 4))
    for step in ours[:8] + ours[-8:]:
        now, following = (sampler.schedule.signal_share(t) for t in (step.t, step.t_next))
        expected = ddim_step(x_t, x_start, now, following, eta, noise)
        estimate = (x_t - step.present_signal * x_start) / step.present_noise
        got = step.signal * x_start + step.kept * estimate + step.fresh * noise
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


SIZES = dict(log_scale=[-1.7, 0.33], log_aspect=[-0.1, 0.1])


@pytest.mark.parametrize(('sampler', 'written'), [
    (dict(), dict(signal_scale=2.0)), (dict(coder=dict(type='SizeBBoxCoder', **SIZES)), dict(sizes=SIZES))],
                         ids=['signal', 'sizes'])
def test_one_denoising_step_is_that_of_torch(sampler, written):
    sampler, frame = DiffusionBoxSampler(**sampler), frame_of(written)
    x_t, noise = normal(2, 2, 50, 4)
    bboxes = sampler.decode(normal(2, 50, 4) * 2, WHWH)
    step = sampling.coefficients(sampler.schedule.alpha_bar.tolist(), 4, 1.0)[1]
    expected = sampler.denoise(x_t, bboxes, WHWH, (step.t, step.t_next), 1.0, noise)
    x_start = frame.encode(bboxes.numpy(), WHWH.numpy())
    got = sampling.ddim_step(x_t.numpy(), x_start, step, noise.numpy())
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=2e-6)
    np.testing.assert_allclose(frame.decode(got, WHWH.numpy()), sampler.decode(expected, WHWH).numpy(), rtol=0,
                               atol=1e-3)


@pytest.mark.parametrize('side', [1e-9, 0.0])
def test_boxes_without_area_and_outside_the_image_have_the_signal_of_torch(side):
    sampler, frame = DiffusionBoxSampler(coder=dict(type='SizeBBoxCoder', **SIZES)), frame_of(dict(sizes=SIZES))
    boxes = torch.tensor([[[10, 10, 10 + side, 10 + side], [-50, -50, 0, 0], [700, 500, 900, 800.0]]]).expand(2, -1, -1)
    expected = sampler.coder.encode(boxes, WHWH[:, None])
    np.testing.assert_allclose(frame.encode(boxes.numpy(), WHWH.numpy()), expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize('number', [1, 2, 100, 1500])
def test_even_start_noise_is_that_of_torch(number):
    shift = normal(3, 1, 4)
    got = even_noise.even_noise(shift.numpy(), number)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, torch_even_noise(shift, number).numpy(), rtol=0, atol=2e-5)


def test_renewal_keeps_what_torch_keeps():
    x_t, fresh, logits = normal(2, 50, 4), normal(2, 50, 4) + 9, normal(2, 50, 6) - 1
    expected = DiffusionBoxSampler.renew(x_t, logits.amax(-1).sigmoid(), 0.5, fresh)
    got = sampling.renew(x_t.numpy(), logits.numpy(), 0.5, fresh.numpy())
    assert (got == expected.numpy()).all() and 0 < (got < 5).mean() < 1


# Detections -----------------------------------------------------------------------------------------------------------


def crowd(number=400, classes=5):
    generator = torch.Generator().manual_seed(1)
    centres = torch.rand((number, 2), generator=generator) * 200
    sizes = 20 + 60 * torch.rand((number, 2), generator=generator)
    bboxes = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1)
    return Detections(bboxes, torch.rand(number, generator=generator),
                      torch.randint(classes, (number, ), generator=generator))


@pytest.mark.parametrize('nms', [
    None, dict(type='nms', iou_threshold=0.5), dict(iou_threshold=0.3, max_num=7),
    dict(type='nms', iou_threshold=0.5, class_agnostic=True), dict(type='soft_nms', iou_threshold=0.3),
    dict(type='soft_nms', iou_threshold=0.5, method='gaussian', sigma=0.3, min_score=0.05),
    dict(type='soft_nms', iou_threshold=0.5, method='naive')], ids=str)
def test_a_picture_ends_with_the_detections_of_torch(nms):
    found = crowd()
    settings = SamplingSettings(num_proposals=400, score_thr=0.2, nms=nms, max_per_img=60, min_bbox_size=5)
    meta = dict(img_shape=(180, 210), scale_factor=(1.5, 0.75))
    expected = torch_post.finish_image(found, meta, settings, rescale=True)
    got = post_processing.finish(post_processing.Detections(*(value.numpy() for value in found)),
                                 settings._asdict(), (210, 180), (1.5, 0.75))
    assert len(got.labels) == len(expected) > 5
    assert (got.labels == expected.labels.numpy()).all()
    np.testing.assert_allclose(got.scores, expected.scores.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(got.bboxes, expected.bboxes.numpy(), rtol=0, atol=0.02)  # torch moves classes apart


@pytest.mark.parametrize('method', ['linear', 'gaussian', 'naive'])
def test_of_soft_suppression_a_best_box_of_a_class_that_scores_too_little_is_dropped_but_for_the_best_of_all(method):
    found = crowd(60, classes=40)
    nms = dict(type='soft_nms', iou_threshold=0.3, min_score=0.5, method=method)
    for scores in (found.scores, found.scores * 0.4):  # some reach the least score, or none
        expected, _, labels = torch_post.suppress(found._replace(scores=scores), nms)
        got = post_processing.class_wise_nms(
            post_processing.Detections(*(value.numpy() for value in found._replace(scores=scores))), nms)
        assert got.labels.tolist() == labels.tolist()
        np.testing.assert_allclose(got.bboxes, expected.numpy(), atol=1e-4)
    assert len(got.labels) == 1


def test_nothing_found_is_no_error():
    settings = dict(score_thr=2.0, nms=dict(iou_threshold=0.5), max_per_img=5, min_bbox_size=0)
    got = post_processing.finish(post_processing.Detections(*(value.numpy() for value in crowd())), settings, (9, 9),
                                 (1.0, 1.0))
    assert got.bboxes.shape == (0, 4) and len(got.scores) == len(got.labels) == 0


def test_boxes_without_area_overlap_nothing():
    boxes = np.array([[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9]], dtype=np.float32)
    assert (post_processing.overlaps(boxes[0], boxes) == 0).all()
    kept = batched_nms(torch.from_numpy(boxes), torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3), dict(iou_threshold=0.5))
    assert len(post_processing.hard_nms(boxes, np.array([0.9, 0.8, 0.7], dtype=np.float32), 0.5)) == len(kept[1])


def test_best_pairs_are_those_of_torch():
    logits, bboxes = normal(1, 50, 6), normal(1, 50, 4)
    expected = torch_post.best_pairs(logits, bboxes)
    got = post_processing.best_pairs(logits[0].numpy(), bboxes[0].numpy())
    order, expected_order = np.argsort(-got.scores), torch.argsort(-expected.scores[0])
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine[order], theirs[0][expected_order].numpy(), atol=1e-6)


@pytest.mark.parametrize('ensemble', ['all', 'all_but_last', 'last'])
@pytest.mark.parametrize('steps', [1, 3])
def test_steps_are_merged_as_in_torch(ensemble, steps):
    parts = [Detections(*(value[None] for value in crowd(4)))] * steps
    expected = torch_post.merge_steps(parts, ensemble)
    got = post_processing.merge_steps([post_processing.Detections(*(value[0].numpy() for value in part))
                                       for part in parts], ensemble)
    assert InstanceData(labels=got.labels).labels.tolist() == expected.labels[0].tolist()


# Pictures -------------------------------------------------------------------------------------------------------------


def picture(width=97, height=61):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize('size', [(64, 40), (200, 130), (97, 80), (1, 1), (33, 61)])
def test_pillow_resizes_as_the_pipeline_does_bit_by_bit(size):
    expected = mmcv.imresize(picture(), size, backend='pillow')
    assert (pictures.resize_by_pillow(picture(), size) == expected).all()


@pytest.mark.parametrize('size', [(64, 40), (200, 130), (97, 80), (33, 61), (128, 90), (48, 30)])
def test_opencv_resizes_are_repeated_within_one_grey_level(size):
    expected = cv2.resize(picture(), size, interpolation=cv2.INTER_LINEAR).astype(int)
    differences = np.abs(pictures.resize_as_opencv(picture(), size) - expected)
    assert differences.max() <= 1 and (differences > 0).mean() < 0.02


def test_halves_are_those_of_opencv():
    expected = cv2.resize(picture(96, 60), (48, 30), interpolation=cv2.INTER_LINEAR)
    assert (pictures.resize_as_opencv(picture(96, 60), (48, 30)) == expected).all()


@pytest.mark.parametrize('size', [(640, 480), (480, 640), (97, 61), (1333, 800), (5000, 3), (3, 3)])
@pytest.mark.parametrize('scale', [(1333, 800), (128, 128)])
def test_sizes_are_those_of_the_pipeline(size, scale):
    rule = dict(scale=list(scale), keep_ratio=True)
    expected = mmcv.rescale_size(size, scale)
    assert pictures.resized_size(size, rule) == tuple(max(1, side) for side in expected)
    assert pictures.resized_size(size, None) == size


@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', 'RGBA', 'LA', 'CMYK'])
def test_pictures_of_any_form_are_read_as_mmcv_reads_them_with_pillow(tmp_path, mode):
    path = tmp_path / ('a.jpg' if mode == 'CMYK' else 'a.png')
    image = Image.fromarray(picture()).convert('RGBA')
    image.putalpha(Image.fromarray(picture()[..., 0]))
    image.convert(mode).save(path)
    expected = mmcv.imread(path, backend='pillow', channel_order='rgb')
    assert (pictures.read_picture(path) == expected).all()


def test_a_grey_picture_with_transparency_follows_the_decoder_of_the_config(tmp_path):
    image = Image.fromarray(picture()[..., 0]).convert('LA')
    image.putalpha(Image.fromarray(picture()[..., 1]))
    image.save(tmp_path / 'a.png')
    expected = cv2.imread(str(tmp_path / 'a.png'), cv2.IMREAD_COLOR)[..., ::-1]
    assert (pictures.read_picture(tmp_path / 'a.png', 'opencv') == expected).all()
    assert (pictures.read_picture(tmp_path / 'a.png', 'pillow') != expected).any()


def test_a_picture_of_16_bits_is_read_as_opencv_reads_it(tmp_path):
    deep = (np.arange(60 * 70, dtype=np.uint16) * 15).reshape(60, 70)
    Image.fromarray(deep).save(tmp_path / 'a.png')
    assert (pictures.read_picture(tmp_path / 'a.png') == cv2.imread(str(tmp_path / 'a.png'))).all()


def test_sixteen_bits_that_an_older_pillow_opens_as_32_are_read_alike(tmp_path):
    deep = (np.arange(60 * 70, dtype=np.uint16) * 15).reshape(60, 70)
    opened = Image.fromarray(deep.astype(np.int32))
    opened.format = 'PNG'
    Image.fromarray(deep).save(tmp_path / 'a.png')
    assert (pictures.read_picture(opened) == cv2.imread(str(tmp_path / 'a.png'))).all()


@pytest.mark.parametrize('mode', ['I', 'F'])
def test_a_picture_without_a_white_is_refused(mode):
    with pytest.raises(ExportError, match=f'mode {mode}, which has no white'):
        pictures.read_picture(Image.new(mode, (5, 5)))


def test_a_picture_whose_end_is_missing_is_refused_when_it_is_open_already(tmp_path):
    Image.fromarray(picture()).save(tmp_path / 'a.jpg')
    (tmp_path / 'b.jpg').write_bytes((tmp_path / 'a.jpg').read_bytes()[:700])
    with Image.open(tmp_path / 'b.jpg') as image, pytest.raises(ExportError, match='cannot be read'):
        pictures.read_picture(image)


TURNED_BACK = {
    1: lambda pixels: pixels, 2: lambda pixels: pixels[:, ::-1], 3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1], 5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1), 7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1), 8: np.rot90}


@pytest.mark.parametrize('suffix', ['png', 'tif', 'webp'])
@pytest.mark.parametrize('orientation', TURNED_BACK)
def test_a_turned_photograph_is_turned_back_and_its_size_is_known_before(tmp_path, orientation, suffix):
    exif, path = Image.Exif(), tmp_path / f'a.{suffix}'
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(path, exif=exif, **(dict(lossless=True) if suffix == 'webp' else {}))
    expected = TURNED_BACK[orientation](picture())
    if suffix == 'png':  # of TIFF OpenCV reads some orientations, and of WebP none before 4.10
        assert (cv2.imread(str(path))[..., ::-1] == expected).all()
    assert (pictures.read_picture(path) == expected).all()
    assert pictures.picture_size(path) == expected.shape[1::-1]
    with Image.open(path) as image:
        assert (pictures.read_picture(image) == expected).all()


@pytest.mark.parametrize('tag', [0x011A, 0x0100])  # XResolution and ImageWidth
def test_other_tags_of_a_wrong_type_do_not_matter(tmp_path, tag):
    entries = sorted([(0x0112, 3, 1, b'\6\0\0\0'), (tag, 2, 4, b'abc\0')])  # a number, and a text
    exif = b'Exif\0\0II*\0' + struct.pack('<IH', 8, 2) + b''.join(struct.pack('<HHI4s', *one) for one in entries)
    Image.fromarray(picture()).save(tmp_path / 'a.jpg', exif=exif + bytes(4))
    assert pictures.read_picture(tmp_path / 'a.jpg').shape == (97, 61, 3)


@pytest.mark.parametrize('suffix', ['png', 'webp', 'jpg'])
def test_exif_data_that_are_none_do_not_matter(tmp_path, suffix):
    Image.fromarray(picture()).save(tmp_path / f'a.{suffix}', exif=b'garbage!garbage')
    assert pictures.read_picture(tmp_path / f'a.{suffix}').shape == (61, 97, 3)
    assert pictures.picture_size(tmp_path / f'a.{suffix}') == (97, 61)


def test_the_size_of_a_picture_that_pillow_would_not_read_is_known(tmp_path, monkeypatch):
    Image.fromarray(picture()).save(tmp_path / 'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    assert pictures.picture_size(tmp_path / 'a.png') == (97, 61)
    with pytest.raises(ExportError, match='DecompressionBomb|decompression bomb'):
        pictures.read_picture(tmp_path / 'a.png')


@pytest.mark.parametrize(('source', 'refusal'), [
    (np.zeros((0, 5, 3), np.uint8), '^a picture of 5 x 0 pixels has no size$'),
    (np.zeros((4, 5), np.uint8), r'^a picture given as an array must be uint8 RGB of shape \(h, w, 3\), got uint8'),
    (np.zeros((4, 5, 3)), 'got float64 of shape'), ('none.jpg', r'^none.jpg cannot be read as a picture \('),
    (None, '^a picture must be a path, a Pillow image or an array, got NoneType$'), (5, 'an array, got int$')])
def test_what_is_no_picture_is_refused(source, refusal):
    with pytest.raises(ExportError, match=refusal) as ended:
        pictures.read_picture(source)
    assert '\n' not in str(ended.value)


def test_a_batch_is_padded_to_multiples_below_and_to_the_right():
    rule = dict(resize=None, mean=[1, 2, 3], std=[2, 2, 2], channel_order='rgb', size_divisor=32, pad_value=0)
    images = pictures.batch([pictures.prepare(picture(width, 40), rule) for width in (30, 70)], rule)
    assert images.shape == (2, 3, 64, 96) and images.dtype == np.float32
    assert (images[0, :, :, 30:] == 0).all() and (images[:, :, 40:] == 0).all()
    assert images[0, 1, 5, 6] == (np.float32(picture(30, 40)[5, 6, 1]) - 2) / 2


# Memory ---------------------------------------------------------------------------------------------------------------


def test_the_memory_of_a_process_is_its_own_and_not_that_of_the_one_that_started_it():
    held = np.ones(2**26)  # 512 MiB
    assert memory.peak_bytes() > held.nbytes
    program = 'from diffusiondet_runtime.memory import peak_bytes; print(peak_bytes())'
    started = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True,
                             env=dict(os.environ, PYTHONPATH=str(REPOSITORY)))
    assert 2**22 < int(started.stdout) < held.nbytes


def test_more_boxes_than_memory_are_refused_with_a_number_that_fits(monkeypatch):
    monkeypatch.setattr(memory, 'available_bytes', lambda: 2**30)
    limits = dict(bytes_per_box=2**20, bytes_per_pair=64)
    memory.refuse_too_many(1, 966, limits)
    with pytest.raises(ExportError, match=r'^2000 boxes on 1 picture\(s\) need about 2\.2 GiB of memory, 1\.0 GiB are '
                                          'free; take at most 966$'):
        memory.refuse_too_many(1, 2000, limits)
    with pytest.raises(ExportError, match='^500 boxes on 3.*take at most 334$'):
        memory.refuse_too_many(3, 500, limits)
    for pictures_, cure in ((2000, 'take fewer pictures at once'), (1, 'free some')):
        with pytest.raises(ExportError, match=f'; {cure}$'):
            memory.refuse_too_many(pictures_, 5, dict(bytes_per_box=2**31 // pictures_, bytes_per_pair=64))
    monkeypatch.setattr(memory, 'available_bytes', lambda: None)  # the system does not say
    memory.refuse_too_many(1, 2000, limits)


def test_this_system_says_how_much_memory_is_free():
    free = memory.available_bytes()
    assert free is None or 2**20 < free < 2**50 and math.isfinite(free)


@pytest.mark.parametrize('version', [1, 2])
def test_the_limit_of_a_container_counts_and_that_of_the_groups_above_it(tmp_path, monkeypatch, version):
    root = tmp_path / ('memory' if version == 1 else '')
    limit, taken, row = memory.GROUP_FILES[2 - version]
    for group, most, now in (('pods', 2**30, 2**29), ('pods/mine', 2**31, 2**28), ('', 'max', 2**33)):
        (root / group).mkdir(parents=True, exist_ok=True)
        (root / group / limit).write_text(f'{most}\n')
        (root / group / taken).write_text(f'{now}\n')
        (root / group / 'memory.stat').write_text(f'anon 1\n{row} {2**20}\n')
    (tmp_path / 'own').write_text('1:cpu:/\n4:memory:/pods/mine\n' if version == 1 else '0::/pods/mine\n')
    monkeypatch.setattr(memory, 'GROUPS', tmp_path)
    monkeypatch.setattr(memory, 'OWN_GROUPS', tmp_path / 'own')
    monkeypatch.setattr(memory, '_of_system', lambda: 2**35)
    assert memory.available_bytes() == 2**29 + 2**20  # of pods, which has less than the group within
    (tmp_path / 'own').write_text('0::/other\n')
    assert memory.available_bytes() == 2**35
    monkeypatch.setattr(memory, 'OWN_GROUPS', tmp_path / 'none')
    assert memory.available_bytes() == 2**35
