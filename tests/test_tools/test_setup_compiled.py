"""``make setup OPERATORS=compiled`` without a build: what it looks for, keeps and asks pip for."""

import pytest
from fake_environment import check, compiled, environment, record_steps, setup


def test_default_set_up_looks_for_no_compiler(tmp_path, monkeypatch):
    record_steps(monkeypatch)
    own = environment(tmp_path)
    monkeypatch.setattr(setup, 'require_compiler', lambda *_: pytest.fail('looked for a compiler'))
    monkeypatch.setattr(setup.Environment, 'look_again', lambda self: self)
    monkeypatch.setattr(setup.Environment, 'check', lambda self: 'operators: stand-in')
    for name in ('stand-in', 'onedl'):
        setup.install_all(own, setup.read_lock(name), 'torch')
    monkeypatch.undo()
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('CXX', raising=False)
    with pytest.raises(check.Fault, match=r'no C\+\+ compiler'):
        setup.install_all(own, setup.read_lock('compiled'), 'torch')


def test_missing_compiler_is_named_with_the_cure(tmp_path):
    with pytest.raises(check.Fault, match=r'no C\+\+ compiler .*Cure: apt-get install g\+\+.*without OPERATORS='):
        compiled.find_compiler({'PATH': str(tmp_path), 'CXX': 'icpx'})


def test_compiler_of_the_user_goes_first(tmp_path):
    for name in ('mine', 'c++', 'clang++'):
        (tmp_path / name).touch(mode=0o755)
    assert compiled.find_compiler({'PATH': str(tmp_path), 'CXX': 'mine -m64'}) == 'mine -m64'
    assert compiled.find_compiler({'PATH': str(tmp_path), 'CXX': 'absent'}) == 'c++'
    (tmp_path / 'c++').unlink()
    assert compiled.find_compiler({'PATH': str(tmp_path)}) == 'clang++'


def test_missing_python_headers_are_told_from_a_broken_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv('CXX', 'false')
    own = environment(tmp_path)
    own.python.parent.mkdir()
    own.python.write_text(f'#!/bin/sh\necho {tmp_path}\n')  # answers with its folder of headers
    own.python.chmod(0o755)
    with pytest.raises(check.Fault, match=r'Python\.h is not in .*Cure: apt-get install python3\.11-dev'):
        compiled.require_compiler(own)
    (tmp_path / 'Python.h').touch()
    with pytest.raises(check.Fault, match='false cannot compile'):
        compiled.require_compiler(own)


def test_build_finds_ninja_in_the_environment_and_asks_for_operators(tmp_path, monkeypatch):
    variables = {}
    monkeypatch.setattr(setup.Environment, 'run', lambda *_, **given: variables.update(given))
    monkeypatch.setattr(compiled, 'find_compiler', lambda environ: 'c++')
    compiled.build_mmcv(environment(tmp_path), '2.1.0')
    assert variables['PATH'].split(':')[0] == str(tmp_path / 'bin')
    assert variables['MMCV_WITH_OPS'] == '1' and int(variables['MAX_JOBS']) >= 1


class FakeBuild:
    """Stands in for pip and for the check of the operators; remembers with what options mmcv was installed."""

    def __init__(self, monkeypatch, faults, output=''):
        self.faults, self.options = list(faults), []
        self.steps = record_steps(monkeypatch)
        monkeypatch.setattr(compiled, 'fault_of_operators', lambda _: self.faults.pop(0))
        monkeypatch.setattr(compiled, 'build_mmcv', lambda env, version, *given: self.options.append(given) or output)


def test_mmcv_with_working_operators_is_kept(tmp_path, monkeypatch):
    build = FakeBuild(monkeypatch, faults=[None])
    compiled.provide_compiled_mmcv(environment(tmp_path, {'mmcv': '2.1.0'}, {'mmcv': ['mmcv']}), '2.1.0')
    assert build.options == build.steps == []


def test_mmcv_lite_makes_room_for_compiled_operators(tmp_path, monkeypatch):
    build = FakeBuild(monkeypatch, faults=['not compiled', None])
    compiled.provide_compiled_mmcv(environment(tmp_path, providers={'mmcv': ['mmcv-lite']}), '2.1.0')
    assert build.steps == [('-m', 'pip', 'uninstall', '--yes', 'mmcv-lite')] and build.options == [()]


def test_kept_wheel_of_another_torch_is_built_anew_once(tmp_path, monkeypatch):
    build = FakeBuild(monkeypatch, faults=['undefined symbol. Cure: x', None], output='Using cached mmcv-2.1.0.whl')
    compiled.provide_compiled_mmcv(environment(tmp_path), '2.1.0')
    assert build.options == [(), ('--no-cache-dir',)]


def test_build_that_gives_no_operators_is_not_repeated(tmp_path, monkeypatch):
    build = FakeBuild(monkeypatch, faults=['no working operators'], output='  Building wheel for mmcv (setup.py)\n')
    with pytest.raises(check.Fault, match='no working operators .*setup.log'):
        compiled.provide_compiled_mmcv(environment(tmp_path), '2.1.0')
    assert build.options == [()]


def test_fork_without_operators_is_reported_and_not_overwritten(tmp_path, monkeypatch):
    build = FakeBuild(monkeypatch, faults=['no working operators'])
    with pytest.raises(check.Fault, match='onedl-mmcv: no working operators'):
        compiled.provide_compiled_mmcv(environment(tmp_path, providers={'mmcv': ['onedl-mmcv']}), '2.1.0')
    assert build.options == []
