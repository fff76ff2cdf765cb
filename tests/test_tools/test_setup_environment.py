"""The set-up without a network: what it decides, what it says. ``make setup`` itself is run by every ``make test``."""

import subprocess
import sys
from pathlib import Path

import pytest
from fake_environment import ROOT, check, compiled, environment, record_steps, setup

NUMPY_2 = {'numpy': '2.4.6'}

# what is refused


@pytest.mark.parametrize(
    'module, name, version',
    [
        ('mmdet', 'mmdet', '2.28.0'),
        ('mmcv', 'mmcv', '2.2.0'),
        ('mmcv', 'mmcv-lite', '2.0.1'),
        ('mmengine', 'mmengine', '0.7.0'),
    ],
)
def test_unsupported_stock_version_is_refused_with_its_place_and_range(tmp_path, module, name, version):
    foreign = environment(tmp_path, {name: version}, {module: [name]})
    with pytest.raises(check.Fault) as fault:
        setup.refuse_unsupported(foreign, NUMPY_2)
    for part in (f'{name} {version}', str(tmp_path), check.read_requirements()[module], 'Cure:'):
        assert part in str(fault.value)


def test_fork_is_not_measured_by_the_stock_range(tmp_path):
    setup.refuse_unsupported(environment(tmp_path, {'onedl-mmcv': '2.3.6'}, {'mmcv': ['onedl-mmcv']}), NUMPY_2)


def test_two_distributions_of_the_same_module_are_refused(tmp_path):
    versions = {'mmcv': '2.1.0', 'mmcv-lite': '2.1.0'}
    both = environment(tmp_path, versions, {'mmcv': ['mmcv', 'mmcv-lite']})
    with pytest.raises(check.Fault, match=r'mmcv and mmcv-lite in .* both bring mmcv.*Cure: pip uninstall mmcv mmcv-l'):
        setup.refuse_unsupported(both, NUMPY_2)


def test_torch_too_old_for_the_lock_is_refused_before_its_numpy_is_replaced(tmp_path):
    with pytest.raises(check.Fault, match=r'torch 2\.1\.0\+cu121 .* numpy 2 '):
        setup.refuse_unsupported(environment(tmp_path, {'torch': '2.1.0+cu121'}), NUMPY_2)
    setup.refuse_unsupported(environment(tmp_path, {'torch': '2.1.0+cu121'}), setup.read_lock('oldest'))


def test_python_too_old_for_the_lock_is_refused_with_the_lock_that_fits():
    with pytest.raises(check.Fault, match=r'/env is of Python 3\.10\.13, and .* needs 3\.11\. Cure: .*LOCK=oldest'):
        setup.refuse_python_too_old('3.10.13', '/env', NUMPY_2)
    setup.refuse_python_too_old('3.10.13', '/env', setup.read_lock('oldest'))


def test_no_environment_is_made_by_a_python_too_old_for_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'version', '3.10.13 (main)')
    with pytest.raises(check.Fault, match=r'needs 3\.11'):
        setup.set_up(tmp_path / 'env', 'torch', 'stand-in')
    assert not (tmp_path / 'env').exists()


# what is installed


def test_lock_is_exact_and_lies_in_the_supported_ranges():
    lock = setup.read_lock('compiled')
    supported = check.read_requirements()
    for name in supported.keys() - {'torch'}:  # the user's own, or chosen by TORCH=
        assert check.satisfies(lock[name], supported[name]), f'{name}=={lock[name]} is not {supported[name]}'
    assert 'torch' not in lock


def test_the_oldest_lock_is_the_lowest_of_every_range():
    lock, supported = setup.read_lock('oldest'), check.read_requirements()
    for name in ('numpy', 'pillow', 'pycocotools', 'mmengine', 'mmdet', 'lvis'):
        lowest = check.version_numbers(supported[name].split(',')[0].removeprefix('>='))
        assert check.version_numbers(lock[name])[:len(lowest)] == lowest, name
    assert lock['mmcv-lite'] == supported['mmcv'].split(',')[0].removeprefix('>=')
    assert 'torch==2.1.0' in (ROOT / 'Makefile').read_text() and supported['torch'] == '>=2.1'


def test_range_in_a_lock_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / 'lock.txt'
    path.write_text('numpy==2.4.6  # why\nscipy>=1.17\n')
    monkeypatch.setattr(setup, 'LOCK_FILES', (path,))
    with pytest.raises(check.Fault, match='scipy in requirements/ must name one version'):
        setup.read_lock('stand-in')


def test_compiled_operators_need_another_mmcv_of_the_same_version_and_its_build_alone():
    default, other = setup.read_lock('stand-in'), setup.read_lock('compiled')
    assert default.keys() - other.keys() == {'mmcv-lite'}
    assert other.keys() - default.keys() == {'mmcv', 'ninja'}
    assert other['mmcv'] == default['mmcv-lite']


def test_lock_of_the_forks_is_the_other_one_with_the_forks_in_place_of_the_stock():
    stock, forks = setup.read_lock('stand-in'), setup.read_lock('onedl')
    assert stock.keys() - forks.keys() == {'mmengine', 'mmcv-lite', 'mmdet'}
    assert forks.keys() - stock.keys() > {'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'}
    assert all(forks[name] == stock[name] for name in forks.keys() & stock.keys())


def test_only_mmcv_with_compiled_operators_gets_a_step_of_its_own(tmp_path):
    for name, mmcv in (('stand-in', 'mmcv-lite'), ('compiled', None), ('onedl', 'onedl-mmcv')):
        wanted = {line.split('==')[0] for line in setup.to_install(setup.read_lock(name), environment(tmp_path).info)}
        assert wanted & set(check.DISTRIBUTIONS['mmcv']) == ({mmcv} if mmcv else set())


@pytest.mark.parametrize('names', [['mmdet'], ['mmdet', 'onedl-mmdetection']])
def test_stock_where_the_forks_are_asked_for_is_refused(tmp_path, names):
    lock = setup.read_lock('onedl')
    message = r'brings mmdet, which is to come from onedl-mmdetection\. Cure: .*VENV_ONEDL='
    with pytest.raises(check.Fault, match=message):
        setup.refuse_stock_beside_forks(environment(tmp_path, providers={'mmdet': names}), lock)
    own = environment(tmp_path, providers={'mmdet': ['onedl-mmdetection']})
    setup.refuse_stock_beside_forks(own, lock)
    setup.refuse_stock_beside_forks(own, setup.read_lock('stand-in'))  # a fork of the user's own is kept


def test_fork_other_opencv_and_mmcv_with_operators_are_kept(tmp_path):
    lock = {'mmdet': '3.3.0', 'mmengine': '0.10.7', 'mmcv-lite': '2.1.0', 'opencv-python-headless': '5.0.0.93'}
    names = {'mmdet': ['onedl-mmdetection'], 'mmcv': ['mmcv'], 'cv2': ['opencv-python']}
    info = environment(tmp_path, providers=names).info
    assert set(setup.kept_modules(lock, info)) == {'mmdet', 'mmcv', 'cv2'}
    assert setup.to_install(lock, info) == ['mmengine==0.10.7']


def test_torch_that_is_there_is_kept(tmp_path, monkeypatch, capsys):
    steps = record_steps(monkeypatch)
    setup.install_torch(environment(tmp_path, {'torch': '2.8.0+cu126'}), 'torch==2.13.0')
    assert steps == [] and 'keeping torch 2.8.0+cu126' in capsys.readouterr().out


def test_every_pip_call_after_torch_leaves_dependencies_alone(tmp_path, monkeypatch):
    steps = record_steps(monkeypatch)
    monkeypatch.setattr(compiled, 'find_compiler', lambda environ: 'c++')
    own = environment(tmp_path)
    setup.install_locked(own, {'numpy': '2.4.6'})
    setup.install_project(own)
    compiled.build_mmcv(own, '2.1.0')
    pip = [arguments for arguments in steps if 'pip' in arguments]
    assert len(pip) == 3 and all('--no-deps' in arguments for arguments in pip)


def test_directory_that_is_no_environment_is_not_written_to(tmp_path):
    (tmp_path / 'thesis.tex').write_text('mine')
    with pytest.raises(check.Fault, match=f'VENV={tmp_path} is there but is no Python environment. Cure:'):
        setup.open_environment(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_environment_that_a_set_up_left_half_made_is_completed(tmp_path):
    """Without pip, as an interruption leaves it: the next run goes on from there."""
    path = tmp_path / 'half'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(path)], check=True)
    assert setup.open_environment(path).version('pip')


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


def test_stamp_expires_with_what_is_asked_for_and_with_the_set_up_itself(tmp_path, monkeypatch):
    own = environment(tmp_path)
    before = setup.fingerprint(own, {'numpy': '2.4.6'})
    assert setup.fingerprint(own, {'numpy': '2.4.7'}) != before
    (tmp_path / 'setup_environment.py').write_text('changed')
    monkeypatch.setattr(setup, 'HERE', tmp_path)
    assert setup.fingerprint(own, {'numpy': '2.4.6'}) != before


# what is shown


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
    explanation = setup.explain_failure(output)
    assert words in explanation and 'Cure:' in explanation and '\n' not in explanation


def test_failure_of_unknown_cause_shows_the_end_of_the_output():
    explanation = setup.explain_failure('\n'.join(f'line {i}' for i in range(100)))
    assert 'line 99' in explanation and 'line 85' in explanation and 'line 84' not in explanation


def test_step_keeps_its_whole_output_and_names_the_log_when_it_fails(tmp_path, capsys):
    own = environment(tmp_path)._replace(python=Path(sys.executable))
    own.log.write_text('ERROR: No matching distribution found for an earlier step\n')
    code = "import sys; print('out'); print('No space left on device', file=sys.stderr); sys.exit(3)"
    with pytest.raises(check.Fault, match=rf'packing failed: the disk is full.*{own.log}'):
        own.run('packing', '-c', code)
    assert {'out', 'No space left on device'} <= set(own.log.read_text().splitlines())
    assert capsys.readouterr().out == 'setup: packing\n'
    assert own.run('asking', '-c', 'import os; print(os.environ["JOBS"])', JOBS='3') == '3\n'


def test_fault_is_exit_code_1_and_no_traceback(tmp_path):
    (tmp_path / 'thesis.tex').write_text('mine')
    script = str(ROOT / 'tools' / 'misc' / 'setup_environment.py')
    result = subprocess.run([sys.executable, script, '--venv', str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith('setup: VENV=') and len(result.stderr.splitlines()) == 1
