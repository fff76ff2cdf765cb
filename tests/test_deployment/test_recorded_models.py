"""Exported, the recorded models give their recorded detections from the image on (tests/test_golden.py for torch)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exports import write_export
from golden_recordings import Golden, one_thread  # noqa: F401  one_thread acts by being here
from mmengine.config import Config
from test_golden import COMPARABLE_STEPS, STEPS, Tape, unmatched

from diffusiondet_runtime import OnnxDetector, pictures
from diffusiondet_runtime.post_processing import best_pairs, finish, merge_steps
from mmdet_diffusion import config_path
from mmdet_diffusion.deployment.sampler_file import sampler_content
from mmdet_diffusion.testing import build_detector


@pytest.fixture(scope='module', params=['mini_r50', 'mini_swin'])
def golden(request):
    return Golden(request.param)


@pytest.fixture(scope='module')
def exported(golden, tmp_path_factory):
    cfg = golden.model_cfg()
    cfg.test_cfg = dict(cfg.test_cfg, max_per_img=10_000, ensemble='all_but_last')  # as it was recorded
    detector = build_detector(cfg)
    detector.load_state_dict(golden.state_dict(), strict=True)
    config = Config.fromfile(config_path('diffusiondet_r50_fpn_8xb2-450k_coco'))
    config.test_dataloader.dataset.pipeline = config.test_pipeline[:1]  # the recorded image is resized already
    folder = tmp_path_factory.mktemp(golden.name) / 'exported'
    folder.mkdir()
    names = [str(label) for label in range(golden.num_classes)]
    write_export(detector, folder, sampler_content(config, detector, names, dict(name='checkpoint.pth', sha256='')))
    return OnnxDetector(folder, num_threads=1)


@pytest.fixture(scope='module')
def image(golden):
    """uint8 RGB, and its scale from the size in which the detections are recorded."""
    pixels = golden('inference')['image'].permute(1, 2, 0).contiguous().numpy()
    (height, width), (out_height, out_width) = pixels.shape[:2], golden('inference')['ori_shape']
    return SimpleNamespace(pixels=pixels, size=(width, height), scale=(width / out_width, height / out_height))


def as_tensors(found, scale=(1.0, 1.0)):
    bboxes = found.bboxes / np.array([*scale, *scale], dtype=np.float32)
    return dict(bboxes=torch.from_numpy(bboxes), scores=torch.from_numpy(found.scores),
                labels=torch.from_numpy(found.labels))


@pytest.mark.parametrize('steps', STEPS)
def test_each_step_from_the_recorded_boxes(golden, exported, image, steps):
    recorded, found = golden('inference')[steps], []
    prepared = exported.prepare(image.pixels)
    levels = exported.engine.features(pictures.batch([prepared], exported.sampler['input']))
    for boxes, t in zip(recorded['step_inputs'], recorded['step_t'], strict=True):
        logits, bboxes = exported.engine.refine(levels, boxes.float().numpy(), t.long().numpy())
        found.append(best_pairs(logits[0], bboxes[0]))
    merged = merge_steps(found, exported.sampler['sampling']['ensemble'])
    detections = finish(merged, exported.sampler['post_processing'], image.size, image.scale)
    assert len(detections.labels) >= 5
    assert unmatched(as_tensors(detections), recorded) == []


@pytest.mark.parametrize('steps', STEPS)
def test_the_loop_with_the_recorded_draws(golden, exported, image, steps):
    """As far as these models of random weights allow: beyond that any two computations part (tests/test_golden.py)."""
    if COMPARABLE_STEPS[golden.name][steps] < max(1, steps - 1):
        pytest.skip('rounding grows beyond the tolerance in steps that count')
    recorded = golden('inference')[steps]
    noise = np.concatenate([draw.numpy() for draw in Tape(recorded).calls])
    found = exported.detect(image.pixels, steps=steps, boxes=golden.num_proposals, noise=noise)
    assert unmatched(as_tensors(found, image.scale), recorded) == []
