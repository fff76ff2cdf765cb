"""An exported folder computes what torch computes, at any batch, boxes, sizes and steps, and runs without torch."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exports import CLASSES, config_of_tests, export, small_detector
from golden_recordings import one_thread  # noqa: F401  acts by being here
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.dataset import Compose, pseudo_collate
from PIL import Image

from diffusiondet_runtime import ExportError, OnnxDetector, engines, pictures
from diffusiondet_runtime.folder import sha256
from mmdet_diffusion.deployment import parity_check
from mmdet_diffusion.deployment.onnx_export import refuse_unexportable
from mmdet_diffusion.deployment.parity_check import (
    Figure,
    check_export,
    check_picture,
    draws,
    step_figures,
    torch_steps,
)
from mmdet_diffusion.deployment.sampler_file import input_rule, post_processing
from mmdet_diffusion.task_modules import image_noise
from mmdet_diffusion.testing import REPOSITORY

LOGITS, PIXELS = 1e-3, 0.05


@pytest.fixture(scope='module')
def detector():
    return small_detector()


@pytest.fixture(scope='module')
def folder(detector, tmp_path_factory):
    return export(detector, tmp_path_factory.mktemp('export') / 'exported', unrolled=(3, 20))


@pytest.fixture(scope='module')
def exported(folder):
    return OnnxDetector(folder, num_threads=1)


def images_of(number, width, height):
    return np.random.default_rng(0).standard_normal((number, 3, height, width)).astype(np.float32)


def assert_steps_agree(detector, exported, number, boxes, size, steps):
    figures = step_figures(detector, exported, images_of(number, *size), size, draws(boxes, 2 * steps - 1, number),
                           steps)
    assert len(figures) == 2 * steps
    assert {figure.bar for figure in figures} == {LOGITS, PIXELS}
    assert all(figure.holds for figure in figures), [str(figure) for figure in figures]


# Parity ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('number', 'boxes', 'size'), [
    (1, 50, (64, 96)), (2, 500, (160, 128)), (5, 50, (96, 64)), (1, 1000, (224, 160)), (1, 1, (32, 32))])
def test_one_export_serves_every_batch_number_of_boxes_and_size(detector, exported, number, boxes, size):
    assert_steps_agree(detector, exported, number, boxes, size, steps=2)


@pytest.mark.parametrize('backbone', ['r50', 'r101', 'swin', 'pvt', 'lite0'])
def test_other_backbones_are_exported_alike(tmp_path, backbone):
    detector = small_detector(backbone)
    exported = OnnxDetector(export(detector, tmp_path / 'exported'), num_threads=1)
    for number, size in ((1, (96, 64)), (3, (128, 192))):
        assert_steps_agree(detector, exported, number, 30, size, steps=2)


def test_closed_loop_of_one_step_gives_the_detections_of_torch(detector, folder):
    figures = check_export(detector, folder, check_picture((160, 96)), boxes=60)
    closed = [figure for figure in figures if 'closed loop' in figure.name]
    assert [figure.bar for figure in closed] == [0, 0.1]
    assert all(figure.holds for figure in figures), [str(figure) for figure in figures]


@pytest.mark.parametrize(('steps', 'change'), [
    (4, {}), (3, dict(eta=0.0)), (3, dict(renewal_score_thr=None)), (4, dict(renewal_score_thr=0.004))])
def test_closed_loop_of_several_steps_gives_the_boxes_of_torch(tmp_path, steps, change):
    detector = small_detector(test_cfg=dict(change))
    detector.bbox_head.test_cfg = dict(detector.bbox_head.test_cfg or {}, **change)
    exported = OnnxDetector(export(detector, tmp_path / 'exported'), num_threads=1)
    picture, noise = check_picture((160, 96)), draws(40)
    if change.get('renewal_score_thr', 0) is None:
        noise = noise[:steps]
    walk = list(exported.steps(picture, steps=steps, boxes=40, noise=noise[:, 0]))
    prepared = parity_check.runtime_pictures.prepare(picture, exported.sampler['input'])
    images = parity_check.runtime_pictures.batch([prepared], exported.sampler['input'])
    expected = torch_steps(detector, images, prepared.size, noise, steps=steps)
    assert len(walk) == len(expected) == steps
    for mine, theirs in zip(walk, expected, strict=True):
        assert mine.t == theirs.t
        np.testing.assert_allclose(mine.noisy_bboxes, theirs.noisy_bboxes[0].numpy(), atol=0.1, rtol=0)
        np.testing.assert_allclose(mine.bboxes, theirs.bboxes[0].numpy(), atol=0.1, rtol=0)
        np.testing.assert_allclose(mine.logits, theirs.cls_scores[0].numpy(), atol=1e-3, rtol=0)


@pytest.mark.parametrize('damage', ['bias', 'norm'])
def test_the_check_sees_a_changed_weight(detector, folder, damage):
    changed = small_detector()
    with torch.no_grad():
        if damage == 'bias':
            changed.bbox_head.stages[-1].fc_reg.bias.add_(0.01)
        else:
            changed.backbone.bn1.running_mean.add_(0.05)
    figures = check_export(changed, folder, check_picture((160, 96)), boxes=30)
    assert not all(figure.holds for figure in figures)


def test_a_figure_that_is_no_number_does_not_hold():
    assert not Figure('x', float('nan'), 1.0).holds and Figure('x', 1.0, 1.0).holds


def test_seeds_draw_in_both_as_in_torch(detector, exported):
    """The same boxes to start from, for the same seed and name."""
    first = next(exported.steps(check_picture((160, 96)), boxes=30, seed=3, name='a.jpg'))
    other = next(exported.steps(check_picture((160, 96)), boxes=30, seed=4, name='a.jpg'))
    generator = torch.Generator().manual_seed(parity_seed(3, 'a.jpg'))
    whwh = torch.tensor([[160.0, 96, 160, 96]])
    expected = detector.bbox_head.box_sampler.decode(torch.randn((1, 30, 4), generator=generator), whwh)
    np.testing.assert_allclose(first.noisy_bboxes, expected[0].numpy(), atol=1e-3, rtol=0)
    assert np.abs(other.noisy_bboxes - first.noisy_bboxes).max() > 1


def parity_seed(seed, name):
    from mmdet_diffusion.task_modules.start_noise import _image_seed
    return _image_seed(seed, dict(img_id=name))


@pytest.fixture(scope='module')
def sized():
    """A detector whose noise has the sizes of a data set, evenly spread, with a seed of its own."""
    coder = dict(type='SizeBBoxCoder', log_scale=(-1.7, 0.3), log_aspect=(-0.1, 0.1))
    detector = small_detector(box_sampler=dict(signal_scale=None, padding='start', coder=coder))
    detector.bbox_head.test_cfg = dict(detector.bbox_head.test_cfg, start_noise='even', seed=5)
    return detector


@pytest.mark.parametrize('steps', [1, 4])
def test_noise_of_the_sizes_of_a_data_set_walks_as_in_torch(sized, tmp_path, steps):
    exported = OnnxDetector(export(sized, tmp_path / 'exported'), num_threads=1)
    picture = check_picture((160, 96))
    walk = list(exported.steps(picture, boxes=30, steps=steps, name='a.jpg'))
    prepared = pictures.prepare(picture, exported.sampler['input'])
    images, head = torch.from_numpy(pictures.batch([prepared], exported.sampler['input'])), sized.bbox_head
    settings = head.sampling_settings()._replace(num_proposals=30, sampling_timesteps=steps)
    with torch.no_grad():
        expected = list(head.sampling_steps(sized.extract_feat(images), torch.tensor([[160.0, 96, 160, 96]]), settings,
                                            image_noise(5, [dict(img_id='a.jpg')], torch.device('cpu'))))
    assert len(walk) == len(expected) == steps
    for one, other in zip(walk, expected, strict=True):
        np.testing.assert_allclose(one.noisy_bboxes, other.noisy_bboxes[0].numpy(), atol=0.05, rtol=0)
        np.testing.assert_allclose(one.logits, other.cls_scores[0].numpy(), atol=1e-2, rtol=0)
    others = next(exported.steps(picture, boxes=30, steps=1, name='a.jpg', seed=0))
    assert np.abs(others.noisy_bboxes - walk[0].noisy_bboxes).max() > 1  # the config's seed is not 0


def test_its_own_check_holds_for_noise_of_such_sizes(sized, tmp_path):
    figures = check_export(sized, export(sized, tmp_path / 'exported'), check_picture((160, 96)), boxes=30)
    assert len(figures) > 4 and all(figure.holds for figure in figures), [str(figure) for figure in figures]


def test_what_onnx_cannot_hold_of_it_is_named_with_the_cure(sized, tmp_path):
    with pytest.raises(ValueError, match='SizeBBoxCoder.*leave out --unrolled'):
        export(sized, tmp_path / 'exported', unrolled=(2, 10))


def test_a_batch_finds_what_single_pictures_find(exported):
    pictures = [check_picture((160, 96)), check_picture((160, 96))[:, ::-1].copy()]
    both = exported.detect_batch(pictures, boxes=30, names=['a', 'b'], steps=2)
    for picture, name, found in zip(pictures, 'ab', both, strict=True):
        alone = exported.detect(picture, boxes=30, name=name, steps=2)
        np.testing.assert_allclose(found.bboxes, alone.bboxes, atol=1e-2)
        assert (found.labels == alone.labels).all() and len(found.labels) > 5


def test_boxes_to_start_from_are_those_of_torch(detector, exported):
    picture, name = check_picture((320, 192)), 'a'  # twice the network's input
    known = np.array([[20, 30, 90, 100], [100, 40, 300, 180], [5, 5, 60, 50]], dtype=np.float32)
    noise = draws(8)[:1, 0]
    given = noise.copy()
    found = exported.detect(picture, boxes=8, steps=1, name=name, noise=noise, proposals=known)
    assert (noise == given).all()  # the caller's array stays
    prepared = pictures.prepare(picture, exported.sampler['input'])
    images = torch.from_numpy(pictures.batch([prepared], exported.sampler['input']))
    head = detector.bbox_head
    settings = head.sampling_settings()._replace(num_proposals=8, sampling_timesteps=1)
    whwh = torch.tensor([[160.0, 96, 160, 96]])
    with torch.no_grad():
        step, = head.sampling_steps(detector.extract_feat(images), whwh, settings,
                                    lambda _: torch.from_numpy(noise), [torch.from_numpy(known / 2)])
    walk, = exported.sample([prepared], 1, 8, 0, [name], noise[:, None], [known / 2])
    np.testing.assert_allclose(walk.noisy_bboxes, step.noisy_bboxes.numpy(), atol=1e-3)
    np.testing.assert_allclose(walk.noisy_bboxes[0, :3], known / 2, atol=1e-3)
    np.testing.assert_allclose(walk.bboxes, step.bboxes.numpy(), atol=0.1)
    assert len(found.labels) > 0
    with pytest.raises(ExportError, match=r'proposals of a picture must have the shape \(P, 4\), got \(4,\)'):
        exported.detect(picture, boxes=8, proposals=known[0, :4])
    with pytest.raises(ExportError, match='proposals must be a list of one for each of 1 pictures, got 2'):
        exported.detect_batch([picture], boxes=8, proposals=[known, known])


def test_openvino_computes_the_same(detector, folder):
    pytest.importorskip('openvino')
    exported = OnnxDetector(folder, engine='openvino', num_threads=1)
    for number, boxes, size in ((1, 50, (64, 96)), (2, 20, (160, 128))):
        assert_steps_agree(detector, exported, number, boxes, size, steps=2)


# The folder -----------------------------------------------------------------------------------------------------------


def test_the_folder_says_what_is_needed_to_run_it(folder, detector):
    content = json.loads((folder / 'sampler.json').read_text())
    assert content['classes'] == list(CLASSES) and content['schema_version'] == 1
    assert content['files'] == {name: sha256(folder / name)
                                for name in ('features.onnx', 'refine.onnx', 'unrolled.onnx')}
    assert content['input']['resize'] == dict(scale=[160, 96], keep_ratio=True, interpolation='pillow')
    assert content['input']['mean'] == pytest.approx([123.675, 116.28, 103.53])
    assert content['diffusion']['alpha_bar'] == detector.bbox_head.box_sampler.schedule.alpha_bar.tolist()
    pairs = [(step['t'], step['t_next']) for step in content['diffusion']['steps']['4']]
    assert pairs == [(999, 749), (749, 499), (499, 249), (249, -1)]


def test_each_graph_carries_what_it_is_of(folder):
    import onnx
    for name in ('features.onnx', 'refine.onnx', 'unrolled.onnx'):
        model = onnx.load(folder / name)
        inside = json.loads({prop.key: prop.value for prop in model.metadata_props}['mmdet_diffusion.sampler'])
        assert inside['checkpoint'] == dict(name='weights.pth', sha256='weights') and inside['classes'] == list(CLASSES)
        assert {opset.domain for opset in model.opset_import} == {''}  # any engine has these operators


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / 'copied')


def refused(path, match, **settings):
    with pytest.raises(ExportError, match=match) as ended:
        OnnxDetector(path, **settings)
    assert '\n' not in str(ended.value)


@pytest.mark.parametrize('name', ['features.onnx', 'refine.onnx', 'unrolled.onnx'])
def test_truncated_and_missing_graphs_are_refused(copied, name):
    data = (copied / name).read_bytes()
    (copied / name).write_bytes(data[:len(data) // 2])
    refused(copied, rf'{name} is not the file that sampler.json was written with \(SHA-256 differs\)')
    (copied / name).unlink()
    refused(copied, f'^there is no .*{name}, which sampler.json names; export again$')


def test_a_folder_of_mixed_exports_is_refused(copied, tmp_path):
    other = export(small_detector(seed=1), tmp_path / 'other')
    shutil.copy(other / 'refine.onnx', copied)
    refused(copied, r'refine.onnx is not the file .* damaged, or of another export')


@pytest.mark.parametrize(('content', 'refusal'), [
    ('{"schema_version": 2}', 'has schema version 2, this package reads 1; export again'),
    ('{"schema_version": 1}', 'sampler.json lacks files, checkpoint'), ('{"sche', 'sampler.json cannot be read'),
    ('[]', 'has schema version None')])
def test_a_sampler_file_of_another_form_is_refused(copied, content, refusal):
    (copied / 'sampler.json').write_text(content)
    refused(copied, refusal)


@pytest.mark.parametrize(('place', 'value', 'refusal'), [
    ('files', [], r'holds \[\] where files should be; export again$'), ('classes', 3, 'holds 3 where classes should'),
    ('classes', [1], 'holds 1 where classes should be'), ('input', None, 'lacks input.resize, input.mean'),
    ('input.mean', 'a', 'holds "a" where input.mean should be'), ('sampling.steps', '1', 'holds "1" where sampling.st'),
    ('sampling.boxes', True, 'holds true where sampling.boxes'), ('diffusion.alpha_bar', [None], 'holds null where d'),
    ('diffusion.signal_scale', 'a', 'holds "a" where diffusion.signal_scale should be'),
    ('diffusion.sizes', dict(log_scale=[1]), 'lacks diffusion.sizes.log_aspect'),
    ('post_processing.nms', 0.5, 'holds 0.5 where post_processing.nms'),
    ('limits', {}, 'lacks limits.bytes_per_box, limits.bytes_per_pair; export again$')])
def test_a_sampler_file_with_other_types_is_refused_by_the_place(copied, place, value, refusal):
    content = json.loads((copied / 'sampler.json').read_text())
    *path, key = place.split('.')
    owner = content
    for step in path:
        owner = owner[step]
    owner[key] = value
    (copied / 'sampler.json').write_text(json.dumps(content))
    refused(copied, f'sampler.json {refusal}')


def test_what_is_no_export_and_no_engine_is_refused(folder, tmp_path):
    refused(tmp_path, 'is no exported folder: there is no sampler.json in it$')
    refused(folder, "^there is no engine 'tensorrt'; there are onnxruntime, openvino$", engine='tensorrt')


def test_an_engine_that_is_not_installed_or_lacks_an_operator_is_named(copied, monkeypatch):
    import onnx
    model = onnx.load(copied / 'refine.onnx')
    model.graph.node[0].op_type = 'OfAnotherEngine'
    onnx.save(model, copied / 'refine.onnx')
    content = json.loads((copied / 'sampler.json').read_text())
    content['files']['refine.onnx'] = sha256(copied / 'refine.onnx')
    (copied / 'sampler.json').write_text(json.dumps(content))
    refused(copied, '^onnxruntime cannot load .*refine.onnx, for want of an operator or for damage: .*OfAnotherEngine')
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    refused(copied, r'^onnxruntime is not installed here \(.*\); pip install onnxruntime$')


@pytest.mark.parametrize(('settings', 'refusal'), [
    (dict(steps=0), '^steps must be an integer in 1..1000, got 0$'), (dict(steps=1001), 'in 1..1000, got 1001$'),
    (dict(boxes=0), '^boxes must be an integer of at least 1, got 0$'), (dict(boxes=2.5), 'got 2.5$'),
    (dict(boxes=10**7), r'^10000000 boxes on 1 picture\(s\) need about .* GiB of memory, .* take at most'),
    (dict(boxes=5, noise=np.zeros((1, 6, 4))), '^noise must have the shape'),
    (dict(noise=np.zeros((5, 4))), r'^noise of one picture must have the shape \(draws, boxes, 4\), got \(5, 4\)$'),
    (dict(noise=[[1], [1, 2]]), '^noise must be an array of numbers'), (dict(noise='a'), '^noise must be an array'),
    (dict(seed=1.5), '^seed must be an integer, got 1.5$'), (dict(seed='a'), "^seed must be an integer, got 'a'$"),
    (dict(score_thr='a'), "^score_thr must be a number, got 'a'$"), (dict(score_thr=float('nan')), 'got nan$'),
    (dict(score_thr=None), '^score_thr must be a number, got None$')])
def test_settings_out_of_range_are_refused(exported, settings, refusal):
    with pytest.raises(ExportError, match=refusal):
        exported.detect(check_picture((64, 32)), **settings)


@pytest.mark.parametrize(('images', 'names', 'refusal'), [
    ('a.jpg', None, '^detect_batch takes a list of pictures, got str; detect takes one$'),
    (np.zeros((5, 5, 3), np.uint8), None, 'got ndarray'), (None, None, 'got NoneType'),
    ([None], None, '^a picture must be a path, a Pillow image or an array, got NoneType$'),
    ([np.zeros((5, 5, 3), np.uint8)], ['a', 'b'], r'^names must be a list of one for each of 1 pictures'),
    ([np.zeros((5, 5, 3), np.uint8)], 'a', "got 'a'$")])
def test_a_batch_of_another_form_is_refused(exported, images, names, refusal):
    with pytest.raises(ExportError, match=refusal):
        exported.detect_batch(images, names=names, boxes=5)


def test_a_number_of_threads_below_one_is_refused(folder):
    refused(folder, '^num_threads must be an integer of at least 1, got 0$', num_threads=0)


def test_memory_that_is_not_to_be_had_is_said_in_one_line(exported):
    class Session:
        def get_inputs(self):
            return [type('Input', (), dict(name='images'))]

        def run(self, *_):
            raise RuntimeError('Failed to allocate memory\nfor requested buffer')

    with pytest.raises(ExportError, match=r'^onnxruntime cannot run inputs of \(1, 2\), perhaps .*allocate memory$'):
        engines.OnnxRuntimeEngine._run(Session(), [np.zeros((1, 2))])


# What cannot be exported ----------------------------------------------------------------------------------------------


def test_another_extractor_is_refused_with_the_cure():
    cfg = dict(_delete_=True, type='SingleRoIExtractor', out_channels=16, featmap_strides=[4, 8, 16, 32],
               roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=2))
    with pytest.raises(ValueError, match='^the roi_extractor is a SingleRoIExtractor, which is not exported; give '):
        refuse_unexportable(small_detector(roi_extractor=cfg))


def test_more_unrolled_steps_than_were_trained_with_are_refused(detector):
    refuse_unexportable(detector, (1000, 5))
    with pytest.raises(ValueError, match='^the unrolled graph cannot have 1001 steps: .* trained with 1000$'):
        refuse_unexportable(detector, (1001, 5))


@pytest.mark.parametrize('nms', [dict(type='nms', iou_threshold=0.5, offset=1),
                                 dict(type='nms', iou_threshold=0.5, sigma=0.5)])
def test_suppression_that_the_run_time_lacks_is_refused(detector, nms):
    settings = detector.bbox_head.sampling_settings()
    with pytest.raises(ValueError, match=f'^test_cfg.nms has {list(nms)[-1]}=.*, which the run-time cannot repeat'):
        post_processing(settings._replace(nms=nms))
    known = dict(type='soft_nms', iou_threshold=0.5, sigma=0.3, min_score=0.01, method='gaussian', max_num=5)
    assert post_processing(settings._replace(nms=dict(known, split_thr=99)))['nms'] == known


@pytest.mark.parametrize('transform', [
    dict(type='Pad', size_divisor=32), dict(type='Resize', scale=(9, 9), interpolation='bicubic'),
    dict(type='Resize', scale_factor=0.5)])
def test_a_pipeline_that_the_run_time_lacks_is_refused_by_its_transform(detector, transform):
    config = config_of_tests()
    config.test_dataloader.dataset.pipeline = [config.test_pipeline[0], transform]
    with pytest.raises(ValueError, match=f"^the test pipeline has .*{transform['type']}.* cannot repeat"):
        input_rule(config, detector)


def test_a_second_resize_is_refused_as_well(detector):
    config = config_of_tests()
    load, resize, *rest = config.test_pipeline
    config.test_dataloader.dataset.pipeline = [load, resize, dict(resize, scale=(60, 60)), *rest]
    with pytest.raises(ValueError, match=r'^the test pipeline has .*\(60, 60\).* cannot repeat'):
        input_rule(config, detector)


@pytest.mark.parametrize('bgr_to_rgb', [True, False])
@pytest.mark.parametrize('backend', [None, 'cv2', 'pillow'])
@pytest.mark.parametrize('keep_ratio', [True, False])
def test_a_picture_becomes_the_input_that_the_pipeline_makes_of_it(tmp_path, bgr_to_rgb, backend, keep_ratio):
    register_all_modules(init_default_scope=True)
    preprocessor = MODELS.build(dict(type='DetDataPreprocessor', mean=[10.0, 20.0, 30.0], std=[4.0, 5.0, 6.0],
                                     pad_size_divisor=32, bgr_to_rgb=bgr_to_rgb))
    config = config_of_tests()
    load, resize, *rest = config.test_pipeline
    load = dict(load, imdecode_backend=backend) if backend else dict(type=load['type'])
    resize = dict(type='Resize', scale=(160, 96), keep_ratio=keep_ratio, **({'backend': backend} if backend else {}))
    config.test_dataloader.dataset.pipeline = [load, resize, *rest]
    path = tmp_path / 'a.png'
    Image.fromarray(check_picture((301, 187))).save(path)

    pipeline = Compose([one for one in config.test_dataloader.dataset.pipeline if one['type'] != 'LoadAnnotations'])
    sample = pipeline(dict(img_path=str(path), img_id=0))
    expected = preprocessor(pseudo_collate([sample]))['inputs'].numpy()
    rule = input_rule(config, SimpleNamespace(data_preprocessor=preprocessor))
    prepared = pictures.prepare(pictures.read_picture(path, rule['decoder']), rule)
    assert prepared.size == sample['data_samples'].img_shape[::-1] == ((155, 96) if keep_ratio else (160, 96))
    assert prepared.scale == pytest.approx(sample['data_samples'].scale_factor)
    found = pictures.batch([prepared], rule)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.01 / 4)  # a grey level, by the least deviation


def test_another_padding_than_that_of_the_graphs_is_refused_with_the_cure():
    preprocessor = MODELS.build(dict(type='DetDataPreprocessor', pad_size_divisor=16))
    with pytest.raises(ValueError, match='pad_size_divisor is 16, .* multiples of 32: set it to 32'):
        input_rule(config_of_tests(), SimpleNamespace(data_preprocessor=preprocessor))


def test_pictures_that_are_not_normalised_stay_so():
    plain = MODELS.build(dict(type='DetDataPreprocessor', pad_size_divisor=32, bgr_to_rgb=True))
    rule = input_rule(config_of_tests(), SimpleNamespace(data_preprocessor=plain))
    assert (rule['mean'], rule['std'], rule['channel_order']) == ([0, 0, 0], [1, 1, 1], 'rgb')


# Without torch --------------------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
for name in ('torch', 'torchvision', 'mmdet', 'mmcv', 'mmengine', 'mmdet_diffusion', 'cv2', 'onnx'):
    sys.modules[name] = None
from diffusiondet_runtime import OnnxDetector
found = OnnxDetector(sys.argv[1]).detect(sys.argv[2], steps=2, boxes=30, seed=0)
print(len(found.labels), round(float(found.bboxes.sum()), 1))
"""


def test_the_run_time_runs_where_torch_cannot_be_imported(folder, exported, tmp_path):
    Image.fromarray(check_picture((200, 120))).save(tmp_path / 'a.png')
    done = subprocess.run([sys.executable, '-c', WITHOUT_TORCH, folder, tmp_path / 'a.png'], cwd=REPOSITORY,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = exported.detect(tmp_path / 'a.png', steps=2, boxes=30, seed=0)
    number, total = done.stdout.split()
    assert int(number) == len(expected.labels) > 5
    assert float(total) == pytest.approx(expected.bboxes.sum(), abs=1)
