"""Configs by name: from the clone, from a wheel, on the command line and as a base."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.runner import Runner

import mmdet_diffusion
from mmdet_diffusion import config_path, config_zoo, list_configs
from mmdet_diffusion.config_zoo import resolve_config
from mmdet_diffusion.launch import with_config_path
from mmdet_diffusion.testing import REPOSITORY

COCO = 'diffusiondet_r50_fpn_8xb2-450k_coco'
SHAPES = 'diffusiondet_r18_fpn_1xb4-4k_shapes'


def test_a_name_gives_the_file_of_the_clone():
    assert Path(config_path(COCO)) == REPOSITORY / 'configs' / 'diffusiondet' / f'{COCO}.py'
    assert config_path(f'{COCO}.py') == config_path(COCO)


def test_all_names_are_listed_and_have_a_file():
    names = list_configs()
    files = [path for path in (REPOSITORY / 'configs').rglob('*.py') if '_base_' not in path.parts]
    assert names == sorted(path.stem for path in files)
    assert {path.parent.name for path in files} == {'diffusiondet', 'benchmark'}
    assert all(Path(config_path(name)).is_file() for name in names)


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(ValueError, match=f"'diffusiondet_r50_fpn_coco'.*{COCO}"):
        config_path('diffusiondet_r50_fpn_coco')


def test_a_name_like_no_other_is_answered_with_where_names_are_listed():
    with pytest.raises(ValueError, match="'xyz'.*mmdet-diffusion configs list"):
        config_path('xyz')


def test_an_installed_package_uses_its_own_configs(tmp_path, monkeypatch):
    package = tmp_path / 'site-packages' / 'mmdet_diffusion'
    shutil.copytree(REPOSITORY / 'configs', package / '.mim' / 'configs')
    (tmp_path / 'site-packages' / 'configs' / 'diffusiondet').mkdir(parents=True)  # of some other package
    monkeypatch.setattr(config_zoo, 'PACKAGE', package)
    assert Path(config_path(COCO)) == package / '.mim' / 'configs' / 'diffusiondet' / f'{COCO}.py'
    assert Config.fromfile(config_path(COCO)).model.type == 'DiffusionDet'


def test_an_installation_without_configs_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(config_zoo, 'PACKAGE', tmp_path / 'mmdet_diffusion')
    with pytest.raises(FileNotFoundError, match='has no configs'):
        config_path(COCO)


def test_a_command_line_gives_a_config_by_name_or_by_path():
    assert [resolve_config(name) for name in list_configs()] == [config_path(name) for name in list_configs()]
    for path in (config_path(COCO), f'{COCO}.py', 'other.json', f'folder/{COCO}', 'iter_5000.pth'):
        assert resolve_config(path) == path


def test_a_name_that_no_config_has_is_answered_with_what_a_path_needs():
    with pytest.raises(ValueError, match=f"'diffusiondet_r50_fpn_coco'.*{COCO}.*; a path needs its .py"):
        resolve_config('diffusiondet_r50_fpn_coco')


@pytest.mark.parametrize('name', [COCO, 'latest', 'iter_5000.pth'])
def test_a_file_that_is_there_is_never_a_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    assert resolve_config(name) == name
    assert with_config_path([name, 'out.pth']) == [name, 'out.pth']


def test_a_folder_does_not_hide_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(COCO).mkdir()
    assert resolve_config(COCO) == config_path(COCO)


def test_the_inferencer_takes_the_path_of_a_name():
    inferencer = DetInferencer(config_path(SHAPES), device='cpu', show_progress=False)
    assert type(inferencer.model) is mmdet_diffusion.detectors.DiffusionDet


# Command line ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('before', [[], ['--local-rank=0']])
def test_a_bare_name_on_the_command_line_becomes_a_path(before):
    rest = ['--work-dir', SHAPES]
    assert with_config_path([*before, COCO, *rest]) == [*before, config_path(COCO), *rest]


@pytest.mark.parametrize('args', [[], ['--help'], ['config.py', 'model.pth'], ['configs/some'], ['--work-dir', COCO]])
def test_other_arguments_stay_as_they_are(args):
    assert with_config_path(args) == args


def test_a_wrong_name_on_the_command_line_ends_with_one_line_of_near_names():
    with pytest.raises(SystemExit, match="^no config is called 'diffusiondet_r50_coco'; near it: diffusiondet_r50.*$"):
        with_config_path(['diffusiondet_r50_coco', '--work-dir', 'work'])


# As a base ------------------------------------------------------------------------------------------------------------


def write_child(folder, base):
    path = folder / 'child.py'
    path.write_text(f"_base_ = '{base}'\nmodel = dict(bbox_head=dict(num_proposals=7))\n")
    return path


def test_a_config_elsewhere_inherits_from_ours_without_pkg_resources(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pkg_resources', None)  # as with setuptools 82
    child = Config.fromfile(write_child(tmp_path, f'mmdet_diffusion::diffusiondet/{COCO}.py'))
    own = Config.fromfile(config_path(COCO))
    assert child.model.bbox_head.num_proposals == 7
    own.model.bbox_head.num_proposals = 7
    assert child.to_dict() == own.to_dict()  # no scope of ours either, in which nothing would be found


def test_a_runner_builds_the_model_of_a_config_that_inherits_from_ours(tmp_path):
    cfg = Config.fromfile(write_child(tmp_path, f'mmdet_diffusion::diffusiondet/{SHAPES}.py'))
    runner = Runner(cfg.model, str(tmp_path / 'work'), default_scope='mmdet', experiment_name='inherits')
    assert runner.model.bbox_head.num_proposals == 7


def test_our_shared_parts_are_bases_too(tmp_path):
    path = tmp_path / 'child.py'
    path.write_text("_base_ = ['mmdet_diffusion::_base_/schedules/schedule_450k.py']\n")
    assert Config.fromfile(path).train_cfg.max_iters == 450000


def test_a_base_that_is_not_there_is_named_with_the_config_that_asks_for_it(tmp_path):
    with pytest.raises(FileNotFoundError, match='child.py has the base .mmdet_diffusion::diffusiondet/none.py'):
        Config.fromfile(write_child(tmp_path, 'mmdet_diffusion::diffusiondet/none.py'))


def test_before_the_import_mmengine_does_not_know_us(tmp_path):
    """The limit that docs/model_zoo.md states; when this fails, the statement can go."""
    child = write_child(tmp_path, f'mmdet_diffusion::diffusiondet/{COCO}.py')
    code = f'from mmengine.config import Config; Config.fromfile({str(child)!r})'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert 'mmengine does not support to load mmdet_diffusion config' in done.stderr
