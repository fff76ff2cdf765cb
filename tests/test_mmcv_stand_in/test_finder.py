"""The import system's side: who wins, what the module looks like, the environment variable, refusals at build."""

import ast
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.utils.dl_utils import mmcv_full_available
from torch import nn

import mmcv_stand_in
from mmcv_stand_in.finder import SOURCE, StandInFinder
from mmcv_stand_in.without_stand_in import FAMILIES
from mmdet_diffusion.testing import REPOSITORY

in_use = pytest.mark.skipif(not mmcv_stand_in.is_active(), reason='compiled operators are in use in this environment')


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setattr(sys, 'meta_path', list(sys.meta_path))
    monkeypatch.delenv(mmcv_stand_in.VARIABLE, raising=False)


def run(script, **environment):
    """Run a script in a process of its own."""
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), **environment)
    return subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True, check=False)


def last_line(script, **environment):
    done = run(script, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def names_of_all_operators():
    """What mmcv.ops asks mmcv._ext for."""
    names = set()
    for file in Path(importlib.import_module('mmcv.ops').__file__).parent.glob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == 'ext_loader.load_ext':
                names |= set(ast.literal_eval(node.args[1]))
    return names


# Who wins -------------------------------------------------------------------------------------------------------------

# A compiled _ext as the ordinary finders would find it: asked before the stand-ins, and present.
WITH_COMPILED = """
import importlib.machinery, sys

names = {names}

class Compiled:
    def find_spec(self, name, path=None, target=None):
        if name == 'mmcv._ext':
            return importlib.machinery.ModuleSpec(name, self, origin='compiled')

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        vars(module).update(dict.fromkeys(names, print))

sys.meta_path.insert(0, Compiled())
import mmcv_stand_in
mmcv_stand_in.install()
before = mmcv_stand_in.is_active()
import mmcv.ops
from torch.nn.modules import module
hooks = len(module._global_module_registration_hooks)
print(before, mmcv_stand_in.is_active(), sys.modules['mmcv._ext'].__spec__.origin, hooks)
"""


def with_compiled():
    return WITH_COMPILED.replace('{names}', repr(names_of_all_operators()))


def test_compiled_operators_win_and_nothing_changes_for_them():
    assert last_line(with_compiled()) == 'False False compiled 0'


def test_always_puts_stand_ins_in_place_of_compiled_operators():
    assert last_line(with_compiled(), MMCV_STAND_IN='always') == f'True True {SOURCE} 1'


def test_always_after_the_compiled_operators_is_too_late_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv._ext', sys)
    monkeypatch.setenv('MMCV_STAND_IN', 'always')
    with pytest.raises(RuntimeError, match='imported already'):
        mmcv_stand_in.install()


def test_never_finds_no_stand_in(monkeypatch):
    monkeypatch.setenv('MMCV_STAND_IN', 'never')
    mmcv_stand_in.install()
    assert StandInFinder not in map(type, sys.meta_path)


def test_another_value_of_the_variable_names_the_three(monkeypatch):
    monkeypatch.setenv('MMCV_STAND_IN', 'off')
    with pytest.raises(ValueError, match="one of auto, always, never, got 'off'"):
        mmcv_stand_in.install()


def test_installing_again_changes_nothing_and_uninstalling_leaves_nothing():
    mmcv_stand_in.uninstall()
    others = list(sys.meta_path)
    for _ in range(3):
        mmcv_stand_in.install()
        assert sys.meta_path[:-1] == others and type(sys.meta_path[-1]) is StandInFinder
    mmcv_stand_in.uninstall()
    assert sys.meta_path == others


def test_the_finder_answers_for_one_name_alone():
    finder = StandInFinder()
    assert finder.find_spec('mmcv._ext').origin == SOURCE
    assert not any(map(finder.find_spec, ('_ext', 'mmcv', 'mmcv.ops', 'mmcv._ext.ops', 'mmseg._ext')))


def test_installing_imports_neither_torch_nor_mmcv():
    script = 'import sys, mmcv_stand_in; mmcv_stand_in.install(); print({"torch", "mmcv", "numpy"} & set(sys.modules))'
    assert last_line(script) == 'set()'
    assert last_line(script.replace('install()', 'is_active()')) == 'set()'


# What the module looks like -------------------------------------------------------------------------------------------


@in_use
def test_the_module_has_spec_loader_and_file_as_any_other():
    extension = importlib.import_module('mmcv._ext')
    assert extension.__spec__.loader is extension.__loader__ and extension.__spec__.name == 'mmcv._ext'
    assert extension.__file__ == SOURCE and inspect.getmodule(extension.nms) is not None
    assert inspect.getsource(extension) and not hasattr(extension, '__path__')
    assert pkgutil.find_loader('mmcv._ext') is not None and mmcv_full_available()


@in_use
def test_private_names_are_not_there_and_other_operators_refuse():
    extension = importlib.import_module('mmcv._ext')
    for name in ('__path__', '__wrapped__', '_private'):
        assert not hasattr(extension, name)
    with pytest.raises(NotImplementedError, match=r"operator nms_rotated has no stand-in.*type='nms_rotated'.*Cure"):
        extension.nms_rotated(1, 2)
    with pytest.raises(NotImplementedError, match='operator of_tomorrow has no stand-in'):
        extension.of_tomorrow()


@in_use
def test_mmcv_reports_its_compiler_in_words():
    from mmcv.utils import collect_env
    assert 'mmcv_stand_in' in collect_env()['MMCV Compiler']


@in_use
def test_every_operator_that_mmcv_asks_for_has_a_stand_in_or_a_family():
    begun = tuple(name for family in FAMILIES for name in family.operators)
    without = names_of_all_operators() - set(importlib.import_module('mmcv._ext').__all__)
    assert len(without) > 80 and not [name for name in without if not name.startswith(begun)]


def test_one_line_in_the_log_says_that_stand_ins_are_in_use():
    script = 'import mmcv_stand_in; mmcv_stand_in.install(); import mmcv.ops, mmcv._ext, mmcv.ops.nms'
    done = run(script, MMCV_STAND_IN='always')
    assert done.returncode == 0 and not done.stdout  # where programs print results
    assert done.stderr.count('mmcv_stand_in') == 1
    assert not run(script, MMCV_STAND_IN='always', RANK='1').stderr


# Refusals at build ----------------------------------------------------------------------------------------------------


@in_use
def test_a_model_with_carafe_is_refused_at_build():
    register_all_modules(init_default_scope=True)
    neck = dict(type='FPN_CARAFE', in_channels=[8, 8], out_channels=8, num_outs=2,
                upsample_cfg=dict(type='carafe', up_kernel=5, up_group=1, encoder_kernel=3, encoder_dilation=1))
    sentence = r"CARAFEPack .*no stand-in.*upsample_cfg=dict\(type='carafe'\).*Cure"
    with pytest.raises(NotImplementedError, match=sentence):
        MODELS.build(neck)


@in_use
@pytest.mark.parametrize('place', [lambda layer: nn.Sequential(layer), lambda layer: nn.ModuleList([layer]),
                                   lambda layer: nn.ModuleDict(dict(a=layer)),
                                   lambda layer: setattr(nn.Module(), 'a', layer)])
def test_a_layer_is_refused_whatever_it_is_put_into(place):
    from mmcv.ops import CARAFE, SubMConv2d
    for layer in (CARAFE(3, 1, 2), SubMConv2d(4, 4, 3)):
        for _ in range(2):
            with pytest.raises(NotImplementedError, match='has no stand-in'):
                place(layer)


@in_use
def test_layers_with_stand_ins_and_layers_of_python_are_not_refused():
    from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack, MultiScaleDeformableAttention, RoIAlign, SAConv2d
    nn.Sequential(DeformConv2dPack(4, 4, 3), ModulatedDeformConv2dPack(4, 4, 3), MultiScaleDeformableAttention(),
                  RoIAlign(7), SAConv2d(4, 4, 3), nn.Conv2d(3, 3, 3))
    nn.Module().register_module('nothing', None)


@in_use
def test_every_layer_named_in_the_families_is_one_of_mmcv():
    classes = filter(inspect.isclass, vars(importlib.import_module('mmcv.ops')).values())
    names = {base.__name__ for layer in classes for base in layer.__mro__ if base.__module__.startswith('mmcv.ops.')}
    assert not {layer for family in FAMILIES for layer in family.layers} - names


@in_use
def test_the_rule_of_learning_rates_for_deformable_convolution_is_on():
    """mmengine asks whether mmcv has operators and, where it has none, leaves the rule out without a word."""
    from mmcv.ops import DeformConv2dPack
    from mmengine.optim import build_optim_wrapper
    model = nn.Sequential(DeformConv2dPack(4, 4, 3))
    wrapper = ConfigDict(optimizer=dict(type='SGD', lr=1.0), paramwise_cfg=dict(dcn_offset_lr_mult=0.1))
    rates = {group['lr'] for group in build_optim_wrapper(model, wrapper).param_groups}
    assert rates == {1.0, 0.1}
