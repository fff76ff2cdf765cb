"""The converter on the key lists of the released checkpoints, and on bad input; its numbers are in test_golden.py."""

import copy
import functools
import hashlib
import json
import subprocess
import sys

import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.datasets import CocoDataset, LVISV1Dataset
from mmdet.models.layers import PatchMerging
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from torch import nn

from mmdet_diffusion.testing import REPOSITORY, load_config, load_tool, shrink_to_recorded_r50

SCRIPT = REPOSITORY / 'tools' / 'model_converters' / 'diffusiondet_to_mmdet.py'
GOLDEN = REPOSITORY / 'tests' / 'data' / 'golden'
CHECKPOINT = GOLDEN / 'mini_r50' / 'checkpoint.pth'
CONFIGS = {
    'coco.res50': 'diffusiondet_r50_fpn_8xb2-450k_coco',
    'coco.res50.300boxes': 'diffusiondet_r50_fpn_300-proposals_8xb2-450k_coco',
    'coco.res101': 'diffusiondet_r101_fpn_8xb2-450k_coco',
    'coco.swinbase': 'diffusiondet_swin-b-p4-w7-in22k_fpn_8xb2-450k_coco',
    'lvis.res50': 'diffusiondet_r50_fpn_8xb2-270k_lvis-v1',
    'lvis.res101': 'diffusiondet_r101_fpn_8xb2-270k_lvis-v1',
    'lvis.swinbase': 'diffusiondet_swin-b-p4-w7-in22k_fpn_8xb2-270k_lvis-v1',
}


@pytest.fixture(scope='module')
def tool():
    return load_tool('model_converters/diffusiondet_to_mmdet.py')


@pytest.fixture
def state(tool):
    return dict(tool.read_source(CHECKPOINT).state)


# The released checkpoints ---------------------------------------------------------------------------------------------


def released_state(name):
    """A state dict with the names, shapes and types of a released checkpoint and no numbers."""
    keys = json.loads((GOLDEN / 'released_keys' / f'{name}.json').read_text())
    return {key: torch.empty(shape, dtype=getattr(torch, dtype), device='meta')
            for key, (shape, dtype) in keys.items()}


@functools.cache
def shapes_of_the_model_of(config):
    """Shape of each tensor of the config's model but the counters of batch norm."""
    register_all_modules(init_default_scope=True)
    with torch.device('cpu' if 'swin' in config else 'meta'):  # meta takes no time, but Swin cannot be built on it
        model = MODELS.build(load_config(f'{config}.py').model)
    return {name: value.shape for name, value in model.state_dict().items()
            if not name.endswith('num_batches_tracked')}


def test_there_is_a_key_list_for_each_released_checkpoint():
    assert {file.stem for file in (GOLDEN / 'released_keys').iterdir()} == set(CONFIGS)


@pytest.mark.parametrize(('name', 'config'), CONFIGS.items())
def test_a_released_checkpoint_fits_the_model_of_its_config_exactly(tool, name, config):
    state = released_state(name)
    converted = tool.convert(state)
    assert {key: value.shape for key, value in converted.items()} == shapes_of_the_model_of(config)
    assert config in tool.suggested_configs(tool.read_sizes(tool.shapes_of(converted)))
    dropped = {key for key in state if tool.convert_name(key) is None}
    assert len(converted) + len(dropped) == len(state)
    assert dropped <= tool.DROPPED
    assert not [key for key in dropped if key.startswith(('backbone.', 'head.'))]


@pytest.mark.parametrize('folder', ['mini_r50', 'mini_swin'])
def test_a_checkpoint_that_lacks_one_tensor_is_refused_with_its_name(tool, folder):
    state = tool.read_source(GOLDEN / folder / 'checkpoint.pth').state
    last_of_each_kind = {tuple(part for part in key.split('.') if not part.isdigit()): key for key in state
                         if key not in tool.DROPPED}.values()
    assert len(last_of_each_kind) > 40
    for key in list(last_of_each_kind)[::4]:  # for time
        with pytest.raises(tool.ConversionError, match=tool.convert_name(key).replace('.', r'\.')):
            tool.convert({other: value for other, value in state.items() if other != key})


def test_models_of_other_sizes_get_no_config(tool):
    for folder in ('mini_r50', 'mini_swin'):
        converted = tool.convert(tool.read_source(GOLDEN / folder / 'checkpoint.pth').state)
        assert tool.suggested_configs(tool.read_sizes(tool.shapes_of(converted))) == []


def test_patch_merging_gives_what_the_original_order_gives(tool):
    """Swin (arXiv:2103.14030) joins the pixels at (0, 0), (1, 0), (0, 1) and (1, 1), each with all its channels."""
    torch.manual_seed(0)
    channels, image = 3, torch.randn(2, 4, 6, 3)
    norm, reduction = nn.LayerNorm(4 * channels), nn.Linear(4 * channels, 5, bias=False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    pixels = [image[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    expected = reduction(norm(torch.cat(pixels, dim=-1))).flatten(1, 2)
    layer = PatchMerging(channels, 5)
    layer.load_state_dict({
        name: tool.convert_value(f'backbone.bottom_up.layers.0.downsample.{name}', value) for name, value in
        {**{f'norm.{key}': value for key, value in norm.state_dict().items()},
         **{f'reduction.{key}': value for key, value in reduction.state_dict().items()}}.items()})
    torch.testing.assert_close(layer(image.flatten(1, 2), (4, 6))[0], expected)


# What is written ------------------------------------------------------------------------------------------------------


def with_classes(state, num_classes):
    """The small model with class layers of zeros for another number of classes."""
    return {name: value.new_zeros(num_classes, *value.shape[1:]) if '.class_logits.' in name else value
            for name, value in state.items()}


def small_config(num_classes):
    """A config whose model the small checkpoint fits, without its data set's file."""
    cfg = load_config('diffusiondet_r50_fpn_8xb2-450k_coco.py')
    shrink_to_recorded_r50(cfg.model)
    cfg.model.bbox_head.num_classes = num_classes
    return cfg


@pytest.mark.parametrize('dataset', [CocoDataset, LVISV1Dataset])
def test_the_inferencer_names_the_classes_of_coco_and_lvis(tool, state, tmp_path, dataset):
    classes = dataset.METAINFO['classes']
    converted = tool.convert(with_classes(state, len(classes)))
    meta = tool.make_meta(CHECKPOINT, tool.read_sizes(tool.shapes_of(converted)))
    tool.write(converted, meta, tmp_path / 'out.pth')
    inferencer = DetInferencer(model=small_config(len(classes)), weights=str(tmp_path / 'out.pth'), device='cpu',
                               show_progress=False)
    assert inferencer.visualizer.dataset_meta['classes'] == classes
    bias = inferencer.model.bbox_head.stages[0].fc_cls.bias
    assert len(bias) == len(classes) and not bias.any()


def test_the_file_says_where_it_comes_from(tool, state):
    meta = tool.make_meta(CHECKPOINT, tool.read_sizes(tool.shapes_of(tool.convert(state))))
    assert meta == dict(suggested_configs=[], source='checkpoint.pth',
                        source_sha256=hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest())


@pytest.mark.parametrize('content', [
    lambda state: state, lambda state: dict(model=state, iteration=1), lambda state: dict(state_dict=state),
    lambda state: dict(model=dict(other=torch.zeros(1)), ema_state=state),
    lambda state: dict(model=state, ema_state={}),
    lambda state: {f'module.{name}': value for name, value in state.items()}
], ids=['plain', 'model', 'state_dict', 'averaged', 'averaging switched off', 'distributed'])
def test_the_state_dict_is_found_however_it_is_wrapped(tool, state, tmp_path, content):
    torch.save(content(state), tmp_path / 'source.pth')
    found = tool.read_source(tmp_path / 'source.pth').state
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_converts_a_checkpoint_checks_it_and_says_what_it_did(tmp_path):
    source, destination, config = tmp_path / 'in.pth', tmp_path / 'out.pth', tmp_path / 'config.py'
    content = torch.load(CHECKPOINT, weights_only=True)
    torch.save(dict(content, model=with_classes(content['model'], 80)), source)
    small_config(80).dump(config)
    done = subprocess.run([sys.executable, SCRIPT, source, destination, '--check', config], capture_output=True,
                          text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert f"{destination}: 411 tensors, the ones under 'model'" in printed
    assert 'left out, since the model computes them: betas, alphas_cumprod, ' in done.stdout
    assert 'classes: 80, person to toothbrush' in printed
    assert 'config: none of this package has these sizes' in printed
    assert f'fits {config}' in printed
    assert 'bbox_head.stages.0.fc_cls.weight' in torch.load(destination, weights_only=True)['state_dict']
    assert {path.name for path in tmp_path.iterdir()} == {'in.pth', 'out.pth', 'config.py'}


def run(tool, monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['diffusiondet_to_mmdet.py', *map(str, args)])
    return tool.main()


def test_a_checkpoint_that_does_not_fit_the_config_is_not_written(tool, monkeypatch, capsys, tmp_path):
    small_config(80).dump(tmp_path / 'config.py')
    code = run(tool, monkeypatch, CHECKPOINT, tmp_path / 'out.pth', '--check', tmp_path / 'config.py')
    assert code == 1
    error = capsys.readouterr().err
    assert 'does not fit' in error and 'differs in 6 shapes' in error
    assert 'bbox_head.stages.0.fc_cls.weight (11, 32) instead of (80, 32)' in error
    assert not (tmp_path / 'out.pth').exists()


def test_the_config_may_be_given_by_its_name(tool, monkeypatch, capsys, tmp_path):
    code = run(tool, monkeypatch, CHECKPOINT, tmp_path / 'out.pth', '--check', CONFIGS['coco.res50'])
    assert code == 1
    assert f'does not fit {CONFIGS["coco.res50"]}: it lacks ' in capsys.readouterr().err


def test_a_name_that_no_config_has_is_named_with_those_that_are_near(tool, monkeypatch, capsys, tmp_path):
    code = run(tool, monkeypatch, CHECKPOINT, tmp_path / 'out.pth', '--check', CONFIGS['coco.res50'][:-1])
    assert code == 1 and CONFIGS['coco.res50'] in capsys.readouterr().err


@pytest.mark.parametrize(('text', 'message'), [(None, 'cannot be read as a config'), ('a = 1', 'has no model')])
def test_a_config_that_is_none_is_named(tool, monkeypatch, capsys, tmp_path, text, message):
    if text:
        (tmp_path / 'config.py').write_text(text)
    code = run(tool, monkeypatch, CHECKPOINT, tmp_path / 'out.pth', '--check', tmp_path / 'config.py')
    assert code == 1 and message in capsys.readouterr().err
    assert not (tmp_path / 'out.pth').exists()


def test_the_command_says_what_is_wrong_in_one_line(tool, monkeypatch, capsys, tmp_path):
    assert run(tool, monkeypatch, tmp_path / 'none.pth', tmp_path / 'out.pth') == 1
    assert capsys.readouterr().err == f'error: {tmp_path / "none.pth"} is not a file\n'
    assert not list(tmp_path.iterdir())


# Bad checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_layout_is_refused_with_its_keys(tool, state):
    state['roi_heads.box_predictor.weight'] = torch.zeros(1)
    with pytest.raises(tool.ConversionError, match='roi_heads.box_predictor.weight'):
        tool.convert(state)


def test_a_checkpoint_that_is_converted_already_is_recognised(tool, state):
    with pytest.raises(tool.ConversionError, match='needs no conversion'):
        tool.convert(tool.convert(state))


@pytest.mark.parametrize('part', ['head.head_series.1.norm2.', 'head.head_series.0.', 'backbone.bottom_up.res4.',
                                  'head.time_mlp.3.', 'backbone.fpn_output3.', 'backbone.bottom_up.', 'head.',
                                  'backbone.bottom_up.res3.0.shortcut.'])
def test_a_checkpoint_that_lacks_a_part_is_refused(tool, state, part):
    kept = {name: value for name, value in state.items() if not name.startswith(part)}
    assert len(kept) < len(state)
    with pytest.raises(tool.ConversionError, match='lacks'):
        tool.convert(kept)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tool, state):
    state['backbone.fpn_output3.weight'] = torch.zeros(32, 32, 1, 1)
    with pytest.raises(tool.ConversionError, match=r'fpn_convs.1.conv.weight \(32, 32, 1, 1\) instead of .*3, 3'):
        tool.convert(state)


@pytest.mark.parametrize('name', ['head.head_series.0.class_logits.weight', 'backbone.bottom_up.stem.conv1.weight'])
def test_a_tensor_that_shows_a_size_and_has_too_few_dimensions_is_named(tool, state, name):
    state[name] = torch.zeros(11)
    with pytest.raises(tool.ConversionError, match=rf'{tool.convert_name(name)} has shape \(11,\)'):
        tool.convert(state)


def test_a_patch_merging_of_other_patches_is_named(tool):
    state = copy.deepcopy(tool.read_source(GOLDEN / 'mini_swin' / 'checkpoint.pth').state)
    state['backbone.bottom_up.layers.0.downsample.norm.bias'] = torch.zeros(9)
    with pytest.raises(tool.ConversionError, match='four times its channels'):
        tool.convert(state)


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', CHECKPOINT.read_bytes()[:5000]])
def test_files_that_hold_no_tensors_are_refused(tool, tmp_path, content):
    source = tmp_path / 'source.pth'
    source.write_bytes(content)
    with pytest.raises(tool.ConversionError, match='cannot be read as tensors'):
        tool.read_source(source)


def test_a_file_that_would_run_code_is_refused_with_what_it_asks_for(tool, tmp_path):
    source = tmp_path / 'source.pth'
    torch.save(dict(model=json.dumps), source)
    with pytest.raises(tool.ConversionError, match='cannot be read as tensors.*asks for json.dumps'):
        tool.read_source(source)


@pytest.mark.parametrize('content', [{}, dict(model={}), [1, 2], {0: torch.zeros(1)}, dict(model=dict(a=1))])
def test_files_without_a_state_dict_are_refused(tool, tmp_path, content):
    source = tmp_path / 'source.pth'
    torch.save(content, source)
    with pytest.raises(tool.ConversionError, match='no state dict'):
        tool.read_source(source)


def test_an_existing_file_is_not_overwritten_and_known_before_anything_is_read(tool, monkeypatch, capsys, tmp_path):
    destination = tmp_path / 'out.pth'
    destination.write_text('precious')
    with pytest.raises(tool.ConversionError, match='exists already'):
        tool.write(dict(a=torch.zeros(1)), {}, destination)
    assert run(tool, monkeypatch, tmp_path / 'none.pth', destination) == 1
    assert 'exists already' in capsys.readouterr().err
    assert destination.read_text() == 'precious'


def test_a_folder_that_is_not_there_is_named_and_nothing_is_left(tool, tmp_path):
    with pytest.raises(tool.ConversionError, match='cannot be written: .*none is not a folder'):
        tool.write(dict(a=torch.zeros(1)), {}, tmp_path / 'none' / 'out.pth')
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_behind(tool, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError('PytorchStreamWriter failed writing file: No space left on device')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(tool.ConversionError, match='No space left'):
        tool.write(dict(a=torch.zeros(1)), {}, tmp_path / 'out.pth')
    assert not list(tmp_path.iterdir())
