"""tools/misc/configs.py: configs listed, shown and copied by name."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmdet_diffusion import config_path, list_configs
from mmdet_diffusion.testing import load_tool

configs = load_tool('misc/configs.py')
LVIS = 'diffusiondet_r50_fpn_8xb2-270k_lvis-v1'  # inherits over three files, and uses names of its bases


def test_list_prints_every_name(capsys):
    assert configs.main(['list']) == 0
    assert capsys.readouterr().out.split() == list_configs()


def test_show_prints_all_that_is_inherited(capsys):
    assert configs.main(['show', LVIS]) == 0
    printed = capsys.readouterr().out
    assert Config.fromstring(printed, '.py').to_dict() == Config.fromfile(config_path(LVIS)).to_dict()


@pytest.mark.parametrize('name', list_configs())
def test_a_copy_is_the_same_config_without_the_package_s_own_files(name, tmp_path, capsys):
    assert configs.main(['copy', name, str(tmp_path / 'mine')]) == 0
    copied = capsys.readouterr().out.strip()
    assert copied == str(tmp_path / 'mine' / Path(config_path(name)).parent.name / f'{name}.py')
    assert '::' not in ''.join(path.read_text() for path in (tmp_path / 'mine').rglob('*.py'))
    assert Config.fromfile(copied).to_dict() == Config.fromfile(config_path(name)).to_dict()


def test_a_second_copy_is_nothing_new_and_an_edited_one_stays(tmp_path):
    for _ in range(2):
        copied = configs.copy(LVIS, tmp_path)
    base = tmp_path / '_base_' / 'default_runtime.py'
    base.write_text('edited = True\n')
    copied.unlink()
    with pytest.raises(SystemExit, match='default_runtime.py is there and is another; nothing was copied'):
        configs.copy(LVIS, tmp_path)
    assert base.read_text() == 'edited = True\n' and not copied.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit, match='cannot write to .*file'):
        configs.copy(LVIS, tmp_path / 'file')


@pytest.mark.parametrize('command', ['show', 'copy'])
def test_a_wrong_name_is_answered_with_near_ones(command):
    with pytest.raises(SystemExit, match=f"no config is called 'diffusiondet_r50_lvis'; near it: .*{LVIS}"):
        configs.main([command, 'diffusiondet_r50_lvis'])
