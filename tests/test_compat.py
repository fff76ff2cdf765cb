"""What of today's stack is mended, and that no more is."""

import builtins
import json
import os
import pickle
import subprocess
import sys
import types
from collections import OrderedDict

import mmengine
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.utils import digit_version

from mmdet_diffusion import compat
from mmdet_diffusion.testing import REPOSITORY

WRITE_CHECKPOINT = """
import sys
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner


class Tiny(BaseModel):

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, *values, mode):
        return dict(loss=self.layer(torch.stack(values)).sum())


runner = Runner(
    model=Tiny(), work_dir=sys.argv[1], train_dataloader=dict(dataset=[torch.ones(1)] * 4, batch_size=2,
    sampler=dict(type='DefaultSampler', shuffle=False), num_workers=0), train_cfg=dict(by_epoch=True, max_epochs=2),
    optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
    param_scheduler=dict(type='LinearLR', by_epoch=False, start_factor=0.1, end=2),
    default_hooks=dict(logger=dict(type='LoggerHook', interval=1)), log_level='ERROR')
runner.train()
"""


def run(script, *args):
    return subprocess.run([sys.executable, '-c', script, *map(str, args)], cwd=REPOSITORY, capture_output=True,
                          text=True, check=False)


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Written by mmengine's Runner in a process that knows nothing of this package."""
    folder = tmp_path_factory.mktemp('run')
    done = run(WRITE_CHECKPOINT, folder)
    assert done.returncode == 0, done.stderr
    return folder / 'epoch_2.pth'


def test_a_checkpoint_of_the_runner_loads_with_the_safety_check_on(checkpoint):
    content = torch.load(checkpoint)  # weights_only=True is the default
    assert set(content['state_dict']) == {'layer.weight', 'layer.bias'}
    history = content['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert len(history.data[0]) == 4
    assert history.statistics('mean') == pytest.approx(history.data[0].mean())
    assert history.current() == history.data[0][-1] and history.min() == history.data[0].min()


def test_the_safety_check_is_on_by_default(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    assert set(content) == set(torch.load(checkpoint))
    if os.environ.get('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'):
        pytest.fail('the environment switches the safety check off, so these tests show nothing')


@pytest.mark.skipif(digit_version(mmengine.__version__) > digit_version('0.10.7'), reason='about mmengine 0.10.7')
@pytest.mark.skipif(digit_version(torch.__version__) < digit_version('2.6'), reason='about torch >= 2.6')
def test_a_checkpoint_of_the_runner_does_not_load_without_this_package(checkpoint):
    """When this fails, mmengine or torch has mended it and ``allow_mmengine_checkpoints`` can go."""
    done = run('import sys, torch, mmengine.runner; torch.load(sys.argv[1])', checkpoint)
    assert done.returncode != 0
    assert 'weights_only' in done.stderr.lower() and 'UnpicklingError' in done.stderr


def test_the_runner_resumes_its_checkpoint(checkpoint):
    script = WRITE_CHECKPOINT.replace('runner = Runner(', 'import mmdet_diffusion\nrunner = Runner(').replace(
        'runner.train()', 'runner.load_checkpoint(sys.argv[2]); runner.resume(sys.argv[2]); print(runner.epoch)')
    done = run(script, checkpoint.parent, checkpoint)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith('2')


class Asks:
    """Pickles as a call of ``function`` with ``args``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def load_asking(tmp_path, function, *args):
    torch.save(dict(meta=Asks(function, *args)), tmp_path / 'asks.pth')
    return torch.load(tmp_path / 'asks.pth')['meta']


@pytest.mark.parametrize('name', ['min', 'max', 'current', 'mean'])
def test_a_checkpoint_may_ask_for_the_four_statistics(tmp_path, name):
    assert load_asking(tmp_path, getattr, HistoryBuffer, name) is getattr(HistoryBuffer, name)


@pytest.mark.parametrize(('owner', 'name'), [
    (HistoryBuffer, '__init__'),
    (HistoryBuffer, '__class__'),
    (HistoryBuffer, '__globals__'),
    (HistoryBuffer, '__subclasses__'),
    (HistoryBuffer, 'register_statistics'),
    (HistoryBuffer, 'min.__globals__'),
    (OrderedDict, 'fromkeys'),
    (np.ndarray, 'min'),
    (torch.Tensor, 'mean'),
])
def test_a_checkpoint_may_ask_for_no_other_attribute(tmp_path, owner, name):
    with pytest.raises((pickle.UnpicklingError, ValueError)) as error:
        load_asking(tmp_path, getattr, owner, name)
    assert 'not allowed' in str(error.value) or 'Unsupported' in str(error.value)


def test_a_checkpoint_may_not_ask_for_an_attribute_of_an_attribute(tmp_path):
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        load_asking(tmp_path, getattr, Asks(getattr, HistoryBuffer, 'min'), '__globals__')


@pytest.mark.parametrize('default', [None, 0])
def test_a_checkpoint_may_not_ask_with_a_default(tmp_path, default):
    with pytest.raises((pickle.UnpicklingError, ValueError, TypeError)):
        load_asking(tmp_path, getattr, HistoryBuffer, '__init__', default)


def test_a_checkpoint_that_runs_a_command_is_refused_and_runs_nothing(tmp_path):
    with pytest.raises(pickle.UnpicklingError):
        load_asking(tmp_path, os.system, f'echo > {tmp_path / "was_here"}')
    assert not (tmp_path / 'was_here').exists()


@pytest.mark.skipif(digit_version(torch.__version__) < digit_version('2.6'), reason='about torch >= 2.6')
def test_mmengines_loader_refuses_a_checkpoint_that_runs_a_command_too(tmp_path):
    torch.save(dict(state_dict={}, meta=Asks(os.system, f'echo > {tmp_path / "was_here"}')), tmp_path / 'asks.pth')
    with pytest.raises(pickle.UnpicklingError):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'asks.pth'), map_location='cpu')
    assert not (tmp_path / 'was_here').exists()


@pytest.mark.skipif(digit_version(torch.__version__) < digit_version('2.6'), reason='about torch >= 2.6')
@pytest.mark.parametrize('first', ['theirs', 'ours'])
def test_a_getattr_that_the_user_allows_stays_theirs(tmp_path, first):
    """Many times: torch keeps both in a set, whose order changes with where they lie in memory."""
    before = torch.serialization.get_safe_globals()
    theirs = [getattr, *(lambda owner, name: (owner, name) for _ in range(20))]
    try:
        for function in theirs:
            torch.serialization.clear_safe_globals()
            entry = getattr if function is getattr else (function, 'builtins.getattr')
            if first == 'ours':
                compat.allow_mmengine_checkpoints()
            torch.serialization.add_safe_globals([entry, OrderedDict])
            if first == 'theirs':
                compat.allow_mmengine_checkpoints()
            assert load_asking(tmp_path, getattr, OrderedDict, 'fromkeys') == function(OrderedDict, 'fromkeys')
        torch.serialization.clear_safe_globals()
        compat.allow_mmengine_checkpoints()
        assert load_asking(tmp_path, getattr, HistoryBuffer, 'min') is HistoryBuffer.min
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


@pytest.mark.parametrize('function', [eval, exec, builtins.__import__])
def test_a_checkpoint_may_call_no_other_builtin(tmp_path, function):
    with pytest.raises(pickle.UnpicklingError):
        load_asking(tmp_path, function, '1')


@pytest.mark.parametrize('dtype', ['float64', 'float32', 'int64', 'uint8', 'bool', 'float16'])
def test_numpy_arrays_and_scalars_in_a_checkpoint_load(tmp_path, dtype):
    content = dict(array=np.ones(3, dtype=dtype), scalar=np.dtype(dtype).type(1))
    torch.save(content, tmp_path / 'numpy.pth')
    loaded = torch.load(tmp_path / 'numpy.pth')
    assert (loaded['array'] == content['array']).all() and loaded['array'].dtype == content['array'].dtype
    assert loaded['scalar'] == content['scalar'] and loaded['scalar'].dtype == content['scalar'].dtype


# LVIS -----------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(digit_version(np.__version__) < digit_version('1.24'), reason='this numpy still has np.float')
def test_lvis_has_its_float_and_numpy_has_none():
    evaluation = pytest.importorskip('lvis.eval')
    assert evaluation.np.float is float
    assert not hasattr(np, 'float')
    assert evaluation.np.cumsum is np.cumsum
    assert sys.modules['numpy'] is np and isinstance(np, types.ModuleType)


def lvis_annotations(tmp_path):
    categories = [
        dict(id=number, name=name, synset=name, synonyms=[name], frequency=frequency, image_count=1, instance_count=1)
        for number, (name, frequency) in enumerate([('cup', 'f'), ('pen', 'r')], start=1)
    ]
    images = [
        dict(id=number, width=100, height=80, not_exhaustive_category_ids=[], neg_category_ids=[2])
        for number in (1, 2)
    ]
    annotations = [
        dict(id=number, image_id=number, category_id=1, bbox=[10, 10, 40, 30], area=1200,
             segmentation=[[10, 10, 50, 10, 50, 40, 10, 40]]) for number in (1, 2)
    ]
    path = tmp_path / 'lvis.json'
    path.write_text(json.dumps(dict(categories=categories, images=images, annotations=annotations)))
    return path


def test_lvis_evaluation_runs(tmp_path):
    lvis = pytest.importorskip('lvis')
    objects = lvis.LVIS(str(lvis_annotations(tmp_path)))
    right, wrong = dict(bbox=[10, 10, 40, 30]), dict(bbox=[60, 50, 20, 20])
    results = [dict(box, image_id=image, category_id=1, score=score)
               for image in (1, 2) for box, score in ((right, 0.9), (wrong, 0.3))]
    evaluation = lvis.LVISEval(objects, lvis.LVISResults(objects, results), 'bbox')
    evaluation.run()
    assert evaluation.get_results()['AP'] == pytest.approx(1.0)


def test_a_stack_without_lvis_needs_no_mending(monkeypatch):
    monkeypatch.setitem(sys.modules, 'lvis.eval', None)  # makes its import fail
    compat.mend_lvis_evaluation()
    assert sys.modules['lvis.eval'] is None


# mmcv's operators and mmdet's version ---------------------------------------------------------------------------------


WITHOUT_OPERATORS = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == 'mmcv._ext':
            raise ModuleNotFoundError("No module named 'mmcv._ext'", name=name)

sys.meta_path.insert(0, Blocked())
import mmdet_diffusion
"""


def test_mmcv_without_operators_gives_one_line_with_the_cure_where_stand_ins_are_ruled_out(monkeypatch):
    monkeypatch.setenv('MMCV_STAND_IN', 'never')
    done = run(WITHOUT_OPERATORS)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith('ImportError: this mmcv has no operators')
    assert 'MMCV_STAND_IN=never' in message and 'pip install --no-build-isolation' in message and 'mmcv' in message


BROKEN_OPERATORS = """
import importlib.machinery
import sys

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == 'mmcv._ext':
            loader = importlib.machinery.ExtensionFileLoader(name, {file!r})
            return importlib.machinery.ModuleSpec(name, loader, origin={file!r})

sys.meta_path.insert(0, Broken())
import mmdet_diffusion
"""


def test_compiled_operators_that_cannot_be_imported_give_one_line_with_both_cures(monkeypatch, tmp_path):
    monkeypatch.setenv('MMCV_STAND_IN', 'auto')
    (tmp_path / '_ext.so').write_bytes(b'not a library')
    done = run(BROKEN_OPERATORS.format(file=str(tmp_path / '_ext.so')))
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith(f"ImportError: mmcv's compiled operators, {tmp_path / '_ext.so'}, cannot be imported (")
    assert 'pip install --no-build-isolation' in message and 'MMCV_STAND_IN=always' in message


def test_another_missing_module_is_reported_as_itself(monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError("No module named 'addict'", name='addict')

    monkeypatch.setattr(compat, 'importlib', types.SimpleNamespace(import_module=import_module))
    with pytest.raises(ModuleNotFoundError, match='addict'):
        compat.check_operators()


@pytest.mark.parametrize(('version', 'warns'), [('2.28.2', True), ('3.0.0', False), ('3.3.0', False), ('3.5.1', False),
                                                ('4.0.0', True)])
def test_an_mmdet_of_another_major_version_warns_and_goes_on(monkeypatch, recwarn, version, warns):
    import mmdet
    monkeypatch.setattr(mmdet, '__version__', version)
    compat.warn_of_untested_mmdet()
    assert [version in str(warning.message) for warning in recwarn] == [True] * warns


# What is changed, and how it is left out ------------------------------------------------------------------------------

WHAT_IS_CHANGED = """
import logging
import sys
logging.basicConfig(level=logging.DEBUG, format='%(name)s %(message)s', stream=sys.stdout)
from mmengine.config import Config
from mmengine.dist import utils
import lvis.eval
before = Config._get_cfg_path, utils._init_dist_pytorch, lvis.eval.np
import mmdet_diffusion
after = Config._get_cfg_path, utils._init_dist_pytorch, lvis.eval.np
print(*(one is other for one, other in zip(before, after)))
"""


def changes(monkeypatch, left_out):
    pytest.importorskip('lvis')
    monkeypatch.setenv(compat.VARIABLE, left_out)
    done = run(WHAT_IS_CHANGED)
    assert done.returncode == 0, done.stderr
    line, = (line for line in done.stdout.splitlines() if line.startswith('mmdet_diffusion '))
    return line, done.stdout.splitlines()[-1].split()


@pytest.mark.skipif(hasattr(np, 'float'), reason='this numpy still has np.float')
def test_what_is_changed_in_other_packages_is_said_in_one_debug_line(monkeypatch):
    line, same = changes(monkeypatch, '')
    assert same == ['False'] * 3
    for name in ('Config._get_cfg_path (config_bases)', '_init_dist_pytorch (cpu_processes)', 'lvis.eval.np (lvis)'):
        assert name in line
    assert line.endswith(f'left out by {compat.VARIABLE}: nothing')


@pytest.mark.parametrize(('left_out', 'kept'), [('all', 'True True True'), ('config_bases, lvis', 'True False True')])
def test_what_the_user_wants_left_alone_is(monkeypatch, left_out, kept):
    line, same = changes(monkeypatch, left_out)
    assert same == kept.split()
    assert line.endswith(f': {left_out}') and ('nothing; left' in line) == (left_out == 'all')


def test_a_name_that_is_no_mend_is_refused_with_those_there_are(monkeypatch):
    monkeypatch.setenv(compat.VARIABLE, 'lvis,numpy')
    with pytest.raises(ImportError, match=f'{compat.VARIABLE} names numpy; it takes checkpoints, .*or all'):
        compat.mend_stack(lambda: REPOSITORY)
