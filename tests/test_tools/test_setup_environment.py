"""The set-up without a network: what it decides, what it says. ``make setup`` itself is run by every ``make test``."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools' / 'misc'))

import check_environment as check  # noqa: E402
import setup_environment as setup  # noqa: E402
import setup_mmcv as mmcv  # noqa: E402
import setup_progress as progress  # noqa: E402

MMCV = mmcv.Distribution('mmcv', '2.1.0')
NO_PROVIDERS = {'mmengine': [], 'mmcv': [], 'mmdet': [], 'torch': [], 'cv2': []}


def environment(tmp_path, versions=None, providers=None) -> setup.Environment:
    info = {
        'python': '3.11.7',
        'prefix': str(tmp_path),
        'include': '/nowhere',
        'versions': versions or {},
        'providers': {**NO_PROVIDERS, **(providers or {})},
    }
    return setup.Environment(tmp_path, tmp_path / 'bin' / 'python', info)


# versions


@pytest.mark.parametrize(
    'version, specifier, expected',
    [
        ('2.1.0', '>=2.1.0,<2.2.0', True),
        ('2.1.9+cu121', '>=2.1.0,<2.2.0', True),
        ('2.2.0', '>=2.1.0,<2.2.0', False),
        ('2.2.0rc1', '>=2.1.0,<2.2.0', False),
        ('2.0.1', '>=2.1.0,<2.2.0', False),
        ('2.13.0+cpu', '>=2.3', True),  # by number: as text '2.13' < '2.3'
        ('2', '>=2.0.0', True),
        ('81.0.0', '==81', True),
    ],
)
def test_versions_are_compared_by_number(version, specifier, expected):
    assert check.satisfies(version, specifier) is expected


@pytest.mark.parametrize('version', [(3, 10, 13), (3, 13, 0), (2, 7, 18)])
def test_python_out_of_range_is_named_with_the_cure(version):
    with pytest.raises(check.Fault, match=rf'/some/python is Python {re.escape(".".join(map(str, version)))}.*Cure:'):
        check.check_python_version(version, '/some/python')


@pytest.mark.parametrize('version', [(3, 11, 0), (3, 12, 9)])
def test_python_in_range_passes(version):
    check.check_python_version(version, '/some/python')


@pytest.mark.parametrize('module, version', [('mmdet', '2.28.0'), ('mmcv', '2.2.0'), ('mmengine', '0.7.0')])
def test_unsupported_stock_version_is_refused_with_its_place_and_range(tmp_path, module, version):
    foreign = environment(tmp_path, {module: version}, {module: [module]})
    with pytest.raises(check.Fault) as fault:
        setup.refuse_unsupported(foreign)
    for part in (f'{module} {version}', str(tmp_path), check.supported(module), 'Cure:'):
        assert part in str(fault.value)


def test_fork_is_not_measured_by_the_stock_range(tmp_path):
    setup.refuse_unsupported(environment(tmp_path, {'onedl-mmcv': '2.3.6'}, {'mmcv': ['onedl-mmcv']}))


def test_mmcv_lite_is_refused_at_once(tmp_path):
    with pytest.raises(check.Fault, match='mmcv-lite .* no operators. Cure: pip uninstall mmcv-lite'):
        setup.refuse_unsupported(environment(tmp_path, {'mmcv-lite': '2.1.0'}, {'mmcv': ['mmcv-lite']}))


def test_torch_too_old_for_the_lock_is_refused_before_its_numpy_is_replaced(tmp_path):
    with pytest.raises(check.Fault, match=r'torch 2\.1\.0\+cu121 .* numpy 2 '):
        setup.refuse_unsupported(environment(tmp_path, {'torch': '2.1.0+cu121'}))


def test_setuptools_without_pkg_resources_is_one_line_with_the_cure(monkeypatch):
    monkeypatch.setattr(check.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(check.Fault, match="pkg_resources.*Cure: .*'setuptools<82'"):
        check.check_setuptools()


def test_mmcv_without_operators_is_one_line_with_the_cure(monkeypatch):
    real = check.importlib.import_module

    def import_module(name):
        if name == 'mmcv.ops':
            raise ModuleNotFoundError("No module named 'mmcv._ext'\nsecond line")
        return real(name)

    monkeypatch.setattr(check.importlib, 'import_module', import_module)
    with pytest.raises(check.Fault) as fault:
        check.check_operators()
    message = str(fault.value)
    assert "no working operators (ModuleNotFoundError: No module named 'mmcv._ext')" in message
    assert 'Cure:' in message and '\n' not in message


def test_the_running_environment_passes_its_own_check():
    check.check_all()


# what is installed


def test_lock_is_exact_and_lies_in_the_supported_ranges():
    lock = setup.read_lock('openmmlab')
    supported = check.read_requirements(ROOT / 'requirements.txt')
    for name in supported.keys() - {'torch'}:  # the user's own, or chosen by TORCH=
        assert check.satisfies(lock[name], supported[name]), f'{name}=={lock[name]} is not {supported[name]}'
    assert 'torch' not in lock


def test_range_in_a_lock_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / 'lock.txt'
    path.write_text('numpy==2.4.6  # why\nscipy>=1.17\n')
    monkeypatch.setattr(setup, 'LOCK_FILES', (path,))
    with pytest.raises(check.Fault, match='scipy in requirements/ must name one version'):
        setup.read_lock('openmmlab')


def test_lock_of_the_forks_is_the_other_one_with_the_forks_in_place_of_the_stock():
    stock, forks = setup.read_lock('openmmlab'), setup.read_lock('onedl')
    assert stock.keys() - forks.keys() == {'mmengine', 'mmcv', 'mmdet'}
    assert forks.keys() - stock.keys() > {'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'}
    assert all(forks[name] == stock[name] for name in forks.keys() & stock.keys())


def test_forks_are_installed_and_their_mmcv_gets_a_step_of_its_own(tmp_path):
    lock = setup.read_lock('onedl')
    wanted = {requirement.split('==')[0] for requirement in setup.to_install(lock, environment(tmp_path).info)}
    assert {'onedl-mmengine', 'onedl-mmdetection'} < wanted
    assert not wanted & {'mmengine', 'mmcv', 'mmdet', 'onedl-mmcv'}


@pytest.mark.parametrize('names', [['mmdet'], ['mmdet', 'onedl-mmdetection']])
def test_stock_where_the_forks_are_asked_for_is_refused(tmp_path, names):
    lock = setup.read_lock('onedl')
    message = r'brings mmdet, which is to come from onedl-mmdetection\. Cure: .*VENV_ONEDL='
    with pytest.raises(check.Fault, match=message):
        setup.refuse_stock_beside_forks(environment(tmp_path, providers={'mmdet': names}), lock)
    own = environment(tmp_path, providers={'mmdet': ['onedl-mmdetection']})
    setup.refuse_stock_beside_forks(own, lock)
    setup.refuse_stock_beside_forks(own, setup.read_lock('openmmlab'))  # a fork of the user's own is kept


def test_only_what_is_missing_or_different_is_installed(tmp_path):
    info = environment(tmp_path, {'pyyaml': '6.0.3', 'numpy': '1.26.4'}).info
    assert setup.to_install({'PyYAML': '6.0.3', 'numpy': '2.4.6', 'mmcv': '2.1.0'}, info) == ['numpy==2.4.6']


def test_fork_and_other_opencv_are_kept(tmp_path):
    lock = {'mmdet': '3.3.0', 'mmengine': '0.10.7', 'opencv-python-headless': '5.0.0.93'}
    info = environment(tmp_path, providers={'mmdet': ['onedl-mmdetection'], 'cv2': ['opencv-python']}).info
    assert setup.kept_modules(lock, info['providers']) == ['mmdet', 'cv2']
    assert setup.to_install(lock, info) == ['mmengine==0.10.7']


def test_torch_that_is_there_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setup, 'run_step', lambda *args: pytest.fail(f'ran {args}'))
    setup.install_torch(environment(tmp_path, {'torch': '2.8.0+cu126'}), 'torch==2.13.0')
    assert 'keeping torch 2.8.0+cu126' in capsys.readouterr().out


def test_every_pip_call_after_torch_leaves_dependencies_alone(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(setup, 'run_step', lambda title, command, *rest: calls.append(command))
    monkeypatch.setattr(mmcv, 'run_step', lambda title, command, *rest: calls.append(command))
    own = environment(tmp_path)
    setup.install_locked(own, {'numpy': '2.4.6'})
    setup.install_project(own)
    mmcv.install_mmcv(own, MMCV)
    assert len(calls) == 3 and all('--no-deps' in command for command in calls)


def test_directory_that_is_no_environment_is_not_written_to(tmp_path):
    (tmp_path / 'thesis.tex').write_text('mine')
    with pytest.raises(check.Fault, match=f'VENV={tmp_path} is there but is no Python environment. Cure:'):
        setup.open_environment(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


# the stamp


def test_stamp_holds_until_something_installed_changes(tmp_path):
    lock = {'numpy': '2.4.6'}
    own = environment(tmp_path, {'numpy': '2.4.6', 'torch': '2.13.0+cpu'})
    assert not setup.is_ready(own, lock)
    own.stamp.write_text(setup.fingerprint(own, lock))
    assert setup.is_ready(own, lock)
    assert setup.is_ready(environment(tmp_path, {'numpy': '2.4.6', 'torch': '2.13.0+cpu', 'ipython': '9.0'}), lock)
    assert not setup.is_ready(environment(tmp_path, {'numpy': '2.4.6', 'torch': '2.12.0'}), lock)
    assert not setup.is_ready(environment(tmp_path, {'numpy': '1.26.4', 'torch': '2.13.0+cpu'}), lock)


def test_stamp_expires_with_the_lock_file(tmp_path, monkeypatch):
    path = tmp_path / 'lock.txt'
    monkeypatch.setattr(setup, 'LOCK_FILES', (path,))
    path.write_text('numpy==2.4.6\n')
    before = setup.fingerprint(environment(tmp_path), {})
    path.write_text('numpy==2.4.7\n')
    assert setup.fingerprint(environment(tmp_path), {}) != before


# the build


def test_missing_compiler_is_named_with_the_cure(tmp_path):
    with pytest.raises(check.Fault, match=r'no C\+\+ compiler .*Cure: apt-get install g\+\+'):
        mmcv.find_compiler({'PATH': str(tmp_path), 'CXX': 'icpx'})


def test_compiler_of_the_user_goes_first(tmp_path):
    for name in ('mine', 'c++', 'clang++'):
        (tmp_path / name).touch(mode=0o755)
    assert mmcv.find_compiler({'PATH': str(tmp_path), 'CXX': 'mine -m64'}) == 'mine -m64'
    assert mmcv.find_compiler({'PATH': str(tmp_path), 'CXX': 'absent'}) == 'c++'
    (tmp_path / 'c++').unlink()
    assert mmcv.find_compiler({'PATH': str(tmp_path)}) == 'clang++'


def test_missing_python_headers_are_told_from_a_broken_compiler(tmp_path):
    with pytest.raises(check.Fault, match=r'Python\.h is not in .*Cure: apt-get install python3\.11-dev'):
        mmcv.check_compiler('false', str(tmp_path), '3.11.7')
    (tmp_path / 'Python.h').touch()
    with pytest.raises(check.Fault, match='false cannot compile'):
        mmcv.check_compiler('false', str(tmp_path), '3.11.7')


@pytest.mark.parametrize(
    'cores, gigabytes, asked, expected',
    [(8, 64, None, 8), (8, 7, None, 3), (8, 1, None, 1), (8, 64, '2', 2), (2, 4, '9', 9)],
)
def test_compilers_at_once_follow_cores_memory_and_the_user(cores, gigabytes, asked, expected):
    assert mmcv.build_jobs(cores, gigabytes * 2**30, asked) == expected


@pytest.mark.parametrize('asked', ['0', '-1', 'all', '1.5'])
def test_max_jobs_that_is_no_count_is_refused(asked):
    with pytest.raises(check.Fault, match=f'MAX_JOBS={asked} .*Cure:'):
        mmcv.build_jobs(2, 2**34, asked)


def test_build_finds_ninja_in_the_environment_and_asks_for_operators(tmp_path):
    environ = mmcv.build_environ(tmp_path)
    assert environ['PATH'].split(':')[0] == str(tmp_path)
    assert environ['MMCV_WITH_OPS'] == '1' and int(environ['MAX_JOBS']) >= 1


class FakeBuild:
    """Stands in for pip and for the check of the operators; remembers with what options mmcv was installed."""

    def __init__(self, monkeypatch, faults, output='', cached=True):
        self.faults, self.options = list(faults), []
        monkeypatch.setattr(mmcv, 'cached_wheel', lambda *_: cached)
        monkeypatch.setattr(mmcv, 'require_compiler', lambda info: None)
        monkeypatch.setattr(mmcv, 'operators_fault', lambda _: self.faults.pop(0))
        monkeypatch.setattr(mmcv, 'install_mmcv', lambda env, mmcv, *options: self.options.append(options) or output)


def test_mmcv_with_working_operators_is_kept(tmp_path, monkeypatch):
    build = FakeBuild(monkeypatch, faults=[None])
    mmcv.provide_mmcv(environment(tmp_path, {'mmcv': '2.1.0'}, {'mmcv': ['mmcv']}), MMCV)
    assert build.options == []


def test_kept_wheel_of_another_torch_is_built_anew_once(tmp_path, monkeypatch, capsys):
    build = FakeBuild(monkeypatch, faults=['undefined symbol. Cure: x', None], output='Using cached mmcv-2.1.0.whl')
    mmcv.provide_mmcv(environment(tmp_path), MMCV)
    assert build.options == [(), ('--no-cache-dir',)]
    assert 'does not fit, so it is built anew: undefined symbol' in capsys.readouterr().out


def test_build_that_gives_no_operators_is_not_repeated(tmp_path, monkeypatch):
    build = FakeBuild(monkeypatch, faults=['no working operators'], output='  [77/77] c++ x\n', cached=False)
    with pytest.raises(check.Fault, match='no working operators .*setup.log'):
        mmcv.provide_mmcv(environment(tmp_path), MMCV)
    assert build.options == [()]


def test_fork_without_operators_is_reported_and_not_overwritten(tmp_path, monkeypatch):
    build = FakeBuild(monkeypatch, faults=['no working operators'])
    with pytest.raises(check.Fault, match='onedl-mmcv: no working operators'):
        mmcv.provide_mmcv(environment(tmp_path, {'onedl-mmcv': '2.3.6'}, {'mmcv': ['onedl-mmcv']}), MMCV)
    assert build.options == []


def test_wheel_of_the_fork_is_not_taken_for_the_stock_one(tmp_path, monkeypatch):
    kept = '/cache/onedl_mmcv-2.1.0-cp311-cp311-linux_x86_64.whl'

    def pip(command, **options):
        pattern = command[command.index('list') + 1]  # pip adds '-*.whl'
        found = kept if Path(kept).name.startswith(f'{pattern}-') else ''
        return subprocess.CompletedProcess(command, 0, found)

    monkeypatch.setattr(mmcv.subprocess, 'run', pip)
    assert mmcv.cached_wheel(environment(tmp_path), mmcv.Distribution('onedl-mmcv', '2.1.0'))
    assert not mmcv.cached_wheel(environment(tmp_path), MMCV)


def test_cure_for_a_fork_without_operators_names_the_fork():
    assert "'onedl-mmcv'" in check.operators_by_hand(['onedl-mmcv'])
    assert f"'mmcv{check.supported('mmcv')}'" in check.operators_by_hand(['mmcv-lite'])


# what is shown


def test_build_step_is_read_from_ninja_and_from_nothing_else():
    assert progress.parse_build_step('  [17/77] c++ -MMD -MF build/nms.o.d -c nms.cpp') == (17, 77)
    assert progress.parse_build_step('building [17/77] things') is None
    assert progress.parse_build_step('[notice] A new release of pip') is None


def test_time_left_is_by_the_mean_of_the_files_so_far():
    assert progress.seconds_left(2, 77, 30.0) is None
    assert progress.seconds_left(20, 80, 100.0) == 300.0
    assert progress.seconds_left(80, 80, 400.0) == 0.0


def test_build_status_has_percentage_and_time_left():
    assert progress.build_status('[20/80] c++ x', 100.0) == '20 of 80 files, 25%, about 5 min left'
    assert progress.build_status('[2/80] c++ x', 100.0) == '2 of 80 files, 2%'
    assert progress.build_status('[80/80] c++ x', 400.0) == 'all 80 files compiled, linking and packing'
    assert progress.build_status('a warning', 100.0) is None


def test_status_is_a_new_line_now_and_then_where_there_is_no_terminal():
    stream = io.StringIO()
    status = progress.StatusLine('mmcv', stream, interval=3600.0)
    status.update('10%')
    assert stream.getvalue() == ''
    status.interval = 0.0
    status.update('20%')
    status.update()  # nothing new, the clock alone
    status.close('done')
    assert re.sub(r'\d+ s', 'T', stream.getvalue()).splitlines() == [
        'setup: mmcv: 20% (T)',
        'setup: mmcv: 20% (T)',
        'setup: mmcv: done after T',
    ]


def test_status_is_one_rewritten_line_on_a_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, 'isatty', lambda: True)
    monkeypatch.setattr(progress.shutil, 'get_terminal_size', lambda: os.terminal_size((40, 24)))
    progress.StatusLine('mmcv', stream).update('x' * 100)
    assert stream.getvalue().startswith('\r\033[K') and '\n' not in stream.getvalue()
    assert len(stream.getvalue()) - len('\r\033[K') < 40


@pytest.mark.parametrize(
    'output, words',
    [
        ('NewConnectionError: refused\nERROR: No matching distribution found for torch', 'index cannot be reached'),
        ('ERROR: No matching distribution found for mmdet==3.3.0', 'mmdet==3.3.0 is not to be had'),
        ('c++: fatal error: Killed signal terminated program cc1plus', 'MAX_JOBS=1'),
        ('OSError: [Errno 28] No space left on device', 'disk is full'),
        ('OSError: CUDA_HOME environment variable is not set.', 'CUDA_VISIBLE_DEVICES='),
    ],
)
def test_failure_of_known_cause_is_one_line_with_the_cure(output, words):
    explanation = progress.explain_failure(output)
    assert words in explanation and 'Cure:' in explanation and '\n' not in explanation


def test_failure_of_unknown_cause_shows_the_end_of_the_output():
    explanation = progress.explain_failure('\n'.join(f'line {i}' for i in range(100)))
    assert 'line 99' in explanation and 'line 85' in explanation and 'line 84' not in explanation


def test_step_keeps_its_whole_output_and_names_the_log_when_it_fails(tmp_path, capsys):
    log = tmp_path / 'log'
    code = "import sys; print('out'); print('No space left on device', file=sys.stderr); sys.exit(3)"
    with pytest.raises(check.Fault, match=rf'packing failed: the disk is full.*{log}'):
        progress.run_step('packing', [sys.executable, '-c', code], log)
    assert {'out', 'No space left on device'} <= set(log.read_text().splitlines())
    assert 'setup: packing: failed after' in capsys.readouterr().out


def test_fault_is_exit_code_1_and_no_traceback(tmp_path):
    (tmp_path / 'thesis.tex').write_text('mine')
    script = str(ROOT / 'tools' / 'misc' / 'setup_environment.py')
    result = subprocess.run([sys.executable, script, '--venv', str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith('setup: VENV=') and len(result.stderr.splitlines()) == 1


# the Makefile


def make(*arguments: str, **variables: str) -> str:
    """What make would run, whatever variables the make that runs these tests was given."""
    given = ('VENV', 'VENV_ONEDL', 'STACK', 'PYTHON', 'MAKEFLAGS', 'MAKEOVERRIDES', 'MFLAGS', 'MAKELEVEL')
    environ = {name: value for name, value in os.environ.items() if name not in given} | variables
    command = ['make', '--dry-run', *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environ).stdout


def test_make_test_sets_up_first_and_runs_all_tests():
    commands = make('test', 'VENV=/env')
    assert commands.index("setup_environment.py --venv '/env'") < commands.index('/env/bin/python -m pytest tests -q')


def test_make_test_onedl_tests_the_forks_in_an_environment_of_their_own():
    for arguments, directory in (((), '.venv-onedl'), (('VENV_ONEDL=/forks', 'VENV=/stock'), '/forks')):
        commands = make('test-onedl', *arguments)
        assert re.search(rf"setup_environment\.py --venv '{directory}' --torch '.*' --stack 'onedl'", commands)
        assert f'{directory}/bin/python -m pytest tests -q' in commands
        assert '/stock' not in commands
    assert "--stack 'openmmlab'" in make('test')


def test_python_of_an_environment_means_that_environment():
    own = setup.environment_of_this_python() or '.venv'
    assert f' {own}/bin/python -m pytest' in make('test', f'PYTHON={sys.executable}')
    assert ' .venv/bin/python -m pytest' in make('test')
    assert ' /other/bin/python -m pytest' in make('test', f'PYTHON={sys.executable}', 'VENV=/other')
    assert ' /other/bin/python -m pytest' in make('test', PYTHON=sys.executable, VENV='/other')  # from the environment
