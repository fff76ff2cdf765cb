"""Backbone weights as people hold them: those that MMDetection loads by itself, and detectron2's pickles."""

import pickle
import re
import subprocess

import numpy as np
import pytest
import torch
from mmdet.models import ResNet, SwinTransformer
from mmengine.config import ConfigDict

from mmdet_diffusion.testing import REPOSITORY, load_tool

GOLDEN = REPOSITORY / 'tests' / 'data' / 'golden'
SWIN = dict(embed_dims=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window_size=7)
RESNET = dict(depth=50, base_channels=8, stem_channels=8)


@pytest.fixture(scope='module')
def tool():
    return load_tool('model_converters/backbone_to_mmdet.py')


@pytest.fixture(scope='module')
def full_converter():
    return load_tool('model_converters/diffusiondet_to_mmdet.py')


def theirs(full_converter, folder):
    """Weights of a recorded model's backbone, by their names."""
    state = full_converter.read_source(GOLDEN / folder / 'checkpoint.pth').state
    prefix = 'backbone.bottom_up.'
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def ours(full_converter, folder):
    """The same by ours, from the converter whose numbers test_golden.py proves."""
    converted = full_converter.convert(full_converter.read_source(GOLDEN / folder / 'checkpoint.pth').state)
    return {name.removeprefix('backbone.'): value for name, value in converted.items()
            if name.startswith('backbone.')}


def write_pickle(state, file):
    """As detectron2's model zoo has them."""
    arrays = {name: value.numpy() for name, value in state.items()}
    file.write_bytes(pickle.dumps(dict(model=arrays, __author__='third_party', matching_heuristics=True)))


def pretrained(file, **options):
    """As it comes out of a config file."""
    return ConfigDict(type='Pretrained', checkpoint=str(file), **options)


def assert_loaded(backbone, expected):
    backbone.init_weights()
    state = backbone.state_dict()
    assert len(expected) > 100
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


# What MMDetection loads by itself -------------------------------------------------------------------------------------


def test_a_resnet_loads_the_file_of_torchvision_as_it_is(full_converter, tmp_path):
    weights = ours(full_converter, 'mini_r50')
    assert {'conv1.weight', 'bn1.running_var', 'layer1.0.downsample.1.bias', 'layer4.2.bn3.weight'} < set(weights)
    torch.save(dict(weights, **{'fc.weight': torch.zeros(1000, 256), 'fc.bias': torch.zeros(1000)}),
               tmp_path / 'resnet50.pth')
    backbone = ResNet(**RESNET, init_cfg=pretrained(tmp_path / 'resnet50.pth'))
    assert_loaded(backbone, weights)


def test_a_swin_loads_the_file_of_microsoft_as_it_is(full_converter, tmp_path):
    """A classifier's: without the norms of the four outputs, with a classifier and masks."""
    state, weights = theirs(full_converter, 'mini_swin'), ours(full_converter, 'mini_swin')
    state = {name: value for name, value in state.items() if not re.match(r'norm\d', name)}
    extra = {'norm.weight': torch.zeros(64), 'head.weight': torch.zeros(1000, 64),
             'layers.0.blocks.1.attn_mask': torch.zeros(64, 49, 49)}
    torch.save(dict(model=dict(state, **extra)), tmp_path / 'swin.pth')
    backbone = SwinTransformer(**SWIN, convert_weights=True,
                               init_cfg=pretrained(tmp_path / 'swin.pth'))
    assert_loaded(backbone, {name: value for name, value in weights.items() if not re.match(r'norm\d', name)})


# Pickles --------------------------------------------------------------------------------------------------------------


def convert_file(tool, monkeypatch, capsys, source, destination):
    """Run the command; gives its exit code and what it printed."""
    monkeypatch.setattr('sys.argv', ['backbone_to_mmdet.py', str(source), str(destination)])
    code = tool.main()
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_a_resnet_of_a_pickle_loads_as_the_command_says(tool, full_converter, monkeypatch, capsys, tmp_path):
    state = dict(theirs(full_converter, 'mini_r50'), **{'stem.fc.weight': torch.zeros(1000, 256)})
    state['stem.conv1.norm.num_batches_tracked'] = torch.tensor(1)
    write_pickle(state, tmp_path / 'R-50.pkl')
    destination = tmp_path / 'r50.pth'
    code, printed = convert_file(tool, monkeypatch, capsys, tmp_path / 'R-50.pkl', destination)
    assert code == 0
    assert f"backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='{destination}', prefix='backbone.'))" in printed
    backbone = ResNet(**RESNET, init_cfg=pretrained(destination, prefix='backbone.'))
    assert_loaded(backbone, ours(full_converter, 'mini_r50'))


@pytest.mark.parametrize('with_output_norms', [True, False])
def test_a_swin_of_a_pickle_loads_as_the_command_says(tool, full_converter, monkeypatch, capsys, tmp_path,
                                                      with_output_norms):
    def keep(state):
        return {name: value for name, value in state.items() if with_output_norms or not re.match(r'norm\d', name)}

    write_pickle(keep(theirs(full_converter, 'mini_swin')), tmp_path / 'swin.pkl')
    destination = tmp_path / 'swin.pth'
    code, printed = convert_file(tool, monkeypatch, capsys, tmp_path / 'swin.pkl', destination)
    assert code == 0
    assert f"convert_weights=False, init_cfg=dict(type='Pretrained', checkpoint='{destination}')" in printed
    backbone = SwinTransformer(**SWIN, init_cfg=pretrained(destination))
    assert_loaded(backbone, keep(ours(full_converter, 'mini_swin')))


def test_a_file_of_torch_in_the_same_layout_converts_too(tool, full_converter, monkeypatch, capsys, tmp_path):
    torch.save(dict(model=theirs(full_converter, 'mini_r50')), tmp_path / 'r50_d2.pth')
    code, _ = convert_file(tool, monkeypatch, capsys, tmp_path / 'r50_d2.pth', tmp_path / 'out.pth')
    assert code == 0 and len(torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']) > 100


class Command:
    """Asks to be unpickled by running a command."""

    def __reduce__(self):
        return subprocess.run, (['false'], )


def caffe_names():
    return dict(conv1_w=np.zeros(3, dtype=np.float32), res2_0_branch2a_w=np.zeros(3, dtype=np.float32))


@pytest.mark.parametrize(('content', 'message'), [
    (pickle.dumps(dict(model=Command())), 'asks for subprocess.run'), (b'', 'no pickle of arrays'),
    (pickle.dumps([1, 2]), 'no pickle of arrays'), (pickle.dumps(dict(model=dict(a=1))), 'no pickle of arrays'),
    (pickle.dumps(dict(model=caffe_names())), '2 of 2 keys are neither .*conv1_w'), (None, 'cannot be read: No such')
], ids=['a command', 'empty', 'a list', 'numbers', 'names of Caffe', 'no file'])
def test_other_pickles_are_refused_with_the_reason(tool, monkeypatch, capsys, tmp_path, content, message):
    if content is not None:
        (tmp_path / 'source.pkl').write_bytes(content)
    code, printed = convert_file(tool, monkeypatch, capsys, tmp_path / 'source.pkl', tmp_path / 'out.pth')
    assert code == 1 and re.search(message, printed)
    assert not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize(('folder', 'part'), [
    ('mini_r50', 'res4.3.conv2.'), ('mini_swin', 'layers.2.downsample.'), ('mini_swin', 'layers.1.blocks.1.mlp.')])
def test_a_backbone_that_lacks_a_part_is_refused(tool, full_converter, folder, part):
    state = {name: value for name, value in theirs(full_converter, folder).items() if not name.startswith(part)}
    with pytest.raises(tool.ConversionError, match='the file lacks'):
        tool.convert(state)
