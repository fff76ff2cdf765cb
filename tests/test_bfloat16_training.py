"""Many iterations in bfloat16: losses and weights stay finite and the loss falls.

``BFLOAT16_ITERATIONS=1000 pytest tests/test_bfloat16_training.py`` for more than a plain run takes. On a CPU without
instructions for it torch computes the same numbers, only slowly.
"""

import os

import torch
from mmengine.registry import OPTIM_WRAPPERS

from mmdet_diffusion import half_precision
from mmdet_diffusion.testing import build_detector, data_sample, random_boxes, small_model_cfg

ITERATIONS = int(os.environ.get('BFLOAT16_ITERATIONS', 40))
HEIGHT, WIDTH = 32, 32


def batch(iteration):
    """Two of eight fixed images with objects of one colour a class, so that there is something to learn."""
    samples, images = [], []
    for number in (iteration % 8, (iteration + 1) % 8):
        generator = torch.Generator().manual_seed(number)
        boxes = random_boxes(number % 4, (HEIGHT, WIDTH), generator)
        labels = torch.arange(len(boxes)) % 3
        image = torch.full((3, HEIGHT, WIDTH), 110.0)
        for (x1, y1, x2, y2), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            image[label, y1:y2, x1:x2] = 255
        images.append(image)
        samples.append(data_sample(boxes, labels, (HEIGHT, WIDTH), img_id=number))
    return dict(inputs=images, data_samples=samples)


def test_training_in_bfloat16_stays_finite_and_learns(monkeypatch):
    monkeypatch.setattr(half_precision, 'missing_support', lambda device, dtype: None)
    model_cfg = small_model_cfg(num_proposals=8, num_stages=1)
    model_cfg.backbone.update(frozen_stages=-1, norm_eval=False, norm_cfg=dict(type='BN', requires_grad=True))
    model = build_detector(model_cfg).train()
    wrapper = OPTIM_WRAPPERS.build(dict(
        type='mmdet.AutocastOptimWrapper', optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        clip_grad=dict(max_norm=1.0)))
    dtypes = set()
    model.bbox_head.stages[0].fc_reg.register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    torch.manual_seed(0)
    losses = []
    for iteration in range(ITERATIONS):
        losses.append(model.train_step(batch(iteration), wrapper)['loss'].item())  # which raises where it is not finite
    assert dtypes == {torch.bfloat16}
    assert all(value.isfinite().all() for value in model.state_dict().values())
    eighth = ITERATIONS // 8
    assert sum(losses[-eighth:]) < 0.9 * sum(losses[:eighth])


