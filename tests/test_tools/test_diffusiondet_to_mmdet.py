"""Bad input to the converter; good input is in tests/test_golden.py."""

import subprocess
import sys

import pytest
import torch

from mmdet_diffusion.testing import REPOSITORY, load_tool

SCRIPT = REPOSITORY / 'tools' / 'model_converters' / 'diffusiondet_to_mmdet.py'
GOLDEN = REPOSITORY / 'tests' / 'data' / 'golden' / 'mini_r50' / 'checkpoint.pth'


@pytest.fixture(scope='module')
def tool():
    return load_tool('model_converters/diffusiondet_to_mmdet.py')


@pytest.fixture
def state(tool):
    return dict(tool.read_state_dict(GOLDEN))


def test_the_command_converts_a_checkpoint_that_loads(tmp_path):
    destination = tmp_path / 'converted.pth'
    done = subprocess.run([sys.executable, SCRIPT, GOLDEN, destination], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'bbox_head.stages.0.fc_cls.weight' in torch.load(destination)['state_dict']
    assert [path.name for path in tmp_path.iterdir()] == ['converted.pth']


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / 'none.pth', tmp_path / 'out.pth'], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == f'error: {tmp_path / "none.pth"} is not a file'
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_layout_is_refused_with_its_keys(tool, state):
    state['roi_heads.box_predictor.weight'] = torch.zeros(1)
    with pytest.raises(tool.ConversionError, match='roi_heads.box_predictor.weight'):
        tool.convert(state)


@pytest.mark.parametrize('part', ['head.head_series.1.norm2.', 'backbone.bottom_up.res4.', 'head.time_mlp.3.',
                                  'backbone.fpn_output3.', 'backbone.bottom_up.res3.0.shortcut.'])
def test_a_checkpoint_that_lacks_a_part_is_refused(tool, state, part):
    kept = {name: value for name, value in state.items() if not name.startswith(part)}
    assert len(kept) < len(state)
    with pytest.raises(tool.ConversionError, match='lacks'):
        tool.convert(kept)


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', GOLDEN.read_bytes()[:5000]])
def test_files_that_hold_no_tensors_are_refused(tool, tmp_path, content):
    source = tmp_path / 'source.pth'
    source.write_bytes(content)
    with pytest.raises(tool.ConversionError, match='cannot be read as tensors'):
        tool.read_state_dict(source)


def test_a_file_that_would_run_code_is_refused(tool, tmp_path):
    source = tmp_path / 'source.pth'
    torch.save(dict(model=subprocess.run), source)
    with pytest.raises(tool.ConversionError, match='cannot be read as tensors'):
        tool.read_state_dict(source)


@pytest.mark.parametrize('content', [{}, dict(model={}), [1, 2], {0: torch.zeros(1)}, dict(model=dict(a=1))])
def test_files_without_a_state_dict_are_refused(tool, tmp_path, content):
    source = tmp_path / 'source.pth'
    torch.save(content, source)
    with pytest.raises(tool.ConversionError, match='no state dict'):
        tool.read_state_dict(source)


def test_an_existing_file_is_not_overwritten(tool, tmp_path):
    destination = tmp_path / 'out.pth'
    destination.write_text('precious')
    with pytest.raises(tool.ConversionError, match='exists already'):
        tool.write(dict(a=torch.zeros(1)), destination)
    assert destination.read_text() == 'precious'


def test_a_folder_that_is_not_there_is_named_and_nothing_is_left(tool, tmp_path):
    with pytest.raises(tool.ConversionError, match='cannot be written: No such file'):
        tool.write(dict(a=torch.zeros(1)), tmp_path / 'none' / 'out.pth')
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_behind(tool, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError('PytorchStreamWriter failed writing file: No space left on device')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(tool.ConversionError, match='No space left'):
        tool.write(dict(a=torch.zeros(1)), tmp_path / 'out.pth')
    assert not list(tmp_path.iterdir())
