"""tools/demo.py: how long it trains. That it runs is seen by CI, which runs its short form, and by the wheel's test."""

import json
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from mmdet_diffusion import config_path
from mmdet_diffusion.testing import load_tool

demo = load_tool('demo.py')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MAX_ITERS', raising=False)
    return tmp_path


def make(minutes=None, quick=False):
    return demo.Demo(Path('work').absolute(), Path('data/shapes').absolute(), quick, minutes)


def test_iterations_fill_the_minutes():
    speed = demo.Speed(start=10, iteration=0.1)
    assert speed.iterations(5) == 2900
    assert speed.minutes(2900) == pytest.approx(5)
    assert speed.iterations(0.01) == demo.TRIAL  # no less than was timed


@pytest.mark.parametrize(('iterations', 'warm_iterations'), [(6, 0), (40, 4), (500, 50), (4000, 100), (20000, 100)])
def test_the_learning_rate_falls_to_zero_at_the_end_of_any_length(monkeypatch, iterations, warm_iterations):
    monkeypatch.setenv('MAX_ITERS', str(iterations))
    config = Config.fromfile(config_path(demo.CONFIG))
    *warm_up, decay = config.param_scheduler
    assert config.train_cfg.max_iters == config.train_cfg.val_interval == iterations == decay.end
    assert [(one.begin, one.end) for one in warm_up] == [(0, warm_iterations)] * bool(warm_iterations)
    assert (decay.begin, decay.T_max) == (warm_iterations, iterations - warm_iterations)  # eta_min at the very end
    assert decay.eta_min == 0


def trainings(monkeypatch, minutes=None, quick=False):
    """Calls of the tool that trains."""
    calls = []
    monkeypatch.setattr(demo, 'run', lambda *args, **options: calls.append((args, options)))
    assert make(minutes, quick).train() is not None
    return calls


@pytest.mark.parametrize(('minutes', 'iterations', 'said'), [(5, 1480, '5.0'), (None, 4000, '13.4')])
def test_the_time_is_told_before_the_training(folder, monkeypatch, capsys, minutes, iterations, said):
    monkeypatch.setattr(demo.Demo, 'measure', lambda self: demo.Speed(start=4, iteration=0.2))
    (args, options), = trainings(monkeypatch, minutes)
    assert args[0] == 'train.py' and options == dict(max_iters=iterations)
    assert f'train_cfg.val_begin={iterations + 1}' in args
    assert f'{iterations} iterations of training take about {said} minutes' in capsys.readouterr().out


def test_speed_is_measured_once_caches_are_full(folder, monkeypatch):
    def train(script, config, flag, work_dir, *options, max_iters, quiet):
        log = Path(work_dir, '20260101', 'vis_data', 'scalars.json')
        log.parent.mkdir(parents=True)
        seconds = [1.0] * demo.SETTLING + [0.5] * (demo.TRIAL - demo.SETTLING)
        log.write_text('\n'.join(json.dumps(dict(time=second)) for second in seconds))
        assert quiet and max_iters == demo.TRIAL

    monkeypatch.setattr(demo, 'run', train)
    assert make().measure().iteration == 0.5
    assert not list(folder.iterdir())  # nothing of the trial stays


def test_the_short_form_measures_nothing(folder, monkeypatch):
    monkeypatch.setattr(demo.Demo, 'measure', None)
    (args, options), = trainings(monkeypatch, quick=True)
    assert options == dict(max_iters=demo.QUICK) and args[-1] == 'default_hooks.logger.interval=2'
    assert not any('val_begin' in str(arg) for arg in args)  # it is validated, too


def test_a_length_goes_by_the_environment_and_is_shown(folder, monkeypatch, capfd):
    (folder / 'trains.py').write_text("import os; print('length', os.environ['MAX_ITERS'])")
    monkeypatch.setattr(demo, 'TOOLS', folder)
    demo.run('trains.py', 'config', max_iters=7)
    assert capfd.readouterr().out.split('\n')[1:3] == ['$ MAX_ITERS=7 python trains.py config', 'length 7']


def test_everything_goes_to_the_current_folder(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(demo.Demo, 'run', lambda self: seen.append((self.work_dir, self.data, self.minutes)))
    for args in (['--minutes', '2.5'], ['--quick'], []):
        monkeypatch.setattr(sys, 'argv', ['demo.py', *args])
        demo.main()
    assert seen == [(folder / 'work_dirs/demo_2.5-minutes', folder / 'data/shapes', 2.5),
                    (folder / 'work_dirs/demo_quick', folder / 'data/shapes_quick', None),
                    (folder / 'work_dirs/demo', folder / 'data/shapes', None)]
    assert 'train_dataloader.dataset.data_root=data/shapes/' in make().options  # relative: may be moved with the folder


@pytest.mark.parametrize('args', [['--minutes', '0'], ['--minutes', '-1'], ['--minutes', 'nan'], ['--minutes', 'x'],
                                  ['--minutes', '1', '--quick']])
def test_lengths_without_sense_are_refused(folder, monkeypatch, capsys, args):
    monkeypatch.setattr(sys, 'argv', ['demo.py', *args])
    with pytest.raises(SystemExit) as ended:
        demo.main()
    assert ended.value.code == 2 and '--minutes' in capsys.readouterr().err


def test_a_quiet_tool_that_fails_is_heard(folder, monkeypatch, capsys):
    (folder / 'fails.py').write_text("print('what went wrong'); raise SystemExit(4)")
    monkeypatch.setattr(demo, 'TOOLS', folder)
    with pytest.raises(SystemExit, match='the demo stopped: fails.py failed with code 4'):
        demo.run('fails.py', quiet=True)
    assert 'what went wrong' in capsys.readouterr().out
