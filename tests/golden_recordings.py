"""Recordings of the authors' model, and the parts of ours that they are held against (tests/data/golden/README.md)."""

import functools
import json
from typing import NamedTuple

import pytest
import torch

from mmdet_diffusion.testing import REPOSITORY, data_sample, load_tool, small_model_cfg

FOLDER = REPOSITORY / 'tests' / 'data' / 'golden'


@functools.cache
def load(file):
    return torch.load(file, weights_only=True)


@functools.cache
def converter():
    return load_tool('model_converters/diffusiondet_to_mmdet.py')


class Golden:
    """Recordings of one model: called with a file's name, it gives what that holds."""

    def __init__(self, name):
        self.name, self.meta = name, json.loads((FOLDER / name / 'meta.json').read_text())
        self.num_proposals, self.num_classes = self.meta['num_proposals'], self.meta['num_classes']
        self.num_stages, self.timesteps = self.meta['num_stages'], self.meta['timesteps']

    def __call__(self, name):
        return load(FOLDER / self.name / f'{name}.pt')

    def backbone_cfg(self):
        if self.meta['swin']:
            return dict(self.meta['swin'], type='SwinTransformer', drop_path_rate=0.0)  # as it was recorded
        width = self.meta['resnet']['base_channels']
        return dict(type='ResNet', depth=50, base_channels=width, stem_channels=width, style='pytorch',
                    frozen_stages=1, norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True)

    def image_whwh(self):
        height, width = self('inference')['image'].shape[-2:]
        return torch.tensor([[width, height, width, height]], dtype=torch.float32)

    def model_cfg(self, **head):
        """Config of the recorded model; ``head`` is merged into that of its head."""
        meta = self.meta
        cfg = small_model_cfg(num_classes=self.num_classes, num_proposals=self.num_proposals,
                              num_stages=self.num_stages, feat_channels=meta['hidden_dim'], **head)
        cfg.backbone = self.backbone_cfg()
        finest = meta['swin']['embed_dims'] if meta['swin'] else meta['resnet']['res2_out']
        cfg.neck.in_channels = [finest * factor for factor in (1, 2, 4, 8)]
        cfg.bbox_head.stage.update(num_attn_heads=meta['nheads'], feedforward_channels=meta['dim_feedforward'],
                                   dynamic_dim=meta['dim_dynamic'])
        return cfg

    def checkpoint(self):
        """Recorded weights by their names."""
        return converter().read_source(FOLDER / self.name / 'checkpoint.pth').state

    def state_dict(self):
        """Recorded weights by our names."""
        return converter().convert(self.checkpoint())

    def training_images(self):
        images = self('train_images')
        return images['images'] if isinstance(images, dict) else images

    def training_samples(self, training):
        """Objects of the training images in one of the recordings of training."""
        recorded = self(training)
        return [
            data_sample(boxes, labels, tuple(image.shape[-2:])) for boxes, labels, image in zip(
                recorded['gt_bboxes'], recorded['gt_labels'], self.training_images(), strict=True)
        ]

    def matching(self, training):
        """Recorded object of each query or -1, shape (S, B, N)."""
        recorded = self(training)
        index = torch.full((self.num_stages, len(recorded['gt_labels']), self.num_proposals), -1)
        for stage, images in recorded['matched'].items():
            for image, (query_mask, gt_index) in enumerate(images):
                index[stage, image, query_mask] = gt_index
        return index

    def losses(self, training):
        """Recorded losses by our names."""
        return {our_loss_name(name): value for name, value in self(training)['losses'].items()}


def our_loss_name(recorded_name):
    kind, _, stage = recorded_name.removeprefix('loss_').partition('_')
    prefix = f'd{stage}.' if stage else ''
    return f'{prefix}loss_{dict(ce="cls", bbox="bbox", giou="iou")[kind]}'


class GradientTolerances(NamedTuple):
    """Relative to the norm of each gradient."""

    neck_and_head: float
    backbone: float
    to_exact: float  # of our float32 to our float64
    rounding: float  # the relative rounding that moves the exact gradients by more than these


def rounded(values, size, generator):
    """Values with random errors of a relative size."""
    return values * (1 + size * torch.randn(values.shape, generator=generator, dtype=values.dtype))


def add_rounding(module, size, generator):
    """Put random errors of a relative size into the output of every matrix product."""

    def perturb(layer, inputs, output):
        return rounded(output, size, generator)

    for layer in module.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(perturb)


def relative_difference(gradient, other):
    return ((gradient - other).norm() / other.norm().clamp(min=1e-12)).item()


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """Rounding depends on how many threads share a sum; the tolerances are those of one. Imported to take effect."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
