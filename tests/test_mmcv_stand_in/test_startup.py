"""The .pth file and the program that writes it, in environments of their own."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import mmcv_stand_in
from mmcv_stand_in import startup
from mmdet_diffusion.testing import REPOSITORY, load_tool

TOOL = REPOSITORY / 'tools' / 'misc' / 'operators.py'
OPERATORS = 'import mmcv.ops'
STOCK = 'from mmdet.apis import DetInferencer; print(DetInferencer.__name__)'


@pytest.fixture
def python(tmp_path):
    """An environment with what is installed in this one, but for its .pth files; gives a function that runs in it."""
    venv.create(tmp_path / 'venv', with_pip=False)
    executable = tmp_path / 'venv' / 'bin' / 'python'
    here = {sysconfig.get_path(name) for name in ('purelib', 'platlib')}
    site_packages(executable).joinpath('parent.pth').write_text('\n'.join(here))

    def run(*arguments, **environment):
        inherited = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'MMCV_STAND_IN')}
        return subprocess.run([executable, *map(str, arguments)], env=dict(inherited, **environment), cwd=tmp_path,
                              capture_output=True, text=True, check=False)

    return run


def site_packages(executable):
    script = 'import sysconfig; print(sysconfig.get_path("purelib"))'
    return Path(subprocess.check_output([executable, '-c', script], text=True).strip())


def test_after_install_a_stock_script_runs_and_after_uninstall_as_before(python):
    before = python('-c', OPERATORS)
    if mmcv_stand_in.is_active():
        assert before.returncode != 0 and "No module named 'mmcv._ext'" in before.stderr
    installed = python(TOOL, '--install')
    assert installed.returncode == 0 and startup.NAME in installed.stdout, installed.stderr
    done = python('-c', STOCK)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == 'DetInferencer', done.stderr
    removed = python(TOOL, '--uninstall')
    assert removed.returncode == 0 and removed.stdout.startswith('removed: ')
    after = python('-c', OPERATORS)
    assert (after.returncode, after.stderr.splitlines()[-1:]) == (before.returncode, before.stderr.splitlines()[-1:])
    assert python(TOOL, '--uninstall').stdout.startswith('there is no ')


def test_stand_ins_take_the_place_of_compiled_operators_in_a_stock_script_that_is_told_so(python):
    python(TOOL, '--install')
    script = 'import mmcv.ops, sys; print(sys.modules["mmcv._ext"].__file__)'
    done = python('-c', script, MMCV_STAND_IN='always')
    assert done.stdout.splitlines()[-1].endswith('extension.py'), done.stderr


def test_a_file_that_outlives_the_package_does_nothing(python, tmp_path):
    lines = startup.line(str(tmp_path / 'gone'))
    site_packages(tmp_path / 'venv' / 'bin' / 'python').joinpath(startup.NAME).write_text(lines)
    done = python('-c', 'import sys; print("mmcv_stand_in" in sys.modules)')
    assert (done.returncode, done.stdout, done.stderr) == (0, 'False\n', '')


@pytest.mark.parametrize('content', ['import no_such_module', 'syntax error', 'raise SystemError("broken")'])
def test_a_broken_package_costs_one_line_and_not_pythons_start(python, tmp_path, content):
    package = tmp_path / 'broken'
    package.mkdir()
    (package / '__init__.py').write_text(content)
    lines = startup.line(str(package))
    site_packages(tmp_path / 'venv' / 'bin' / 'python').joinpath(startup.NAME).write_text(lines)
    done = python('-c', 'print("runs")')
    assert (done.returncode, done.stdout) == (0, 'runs\n')
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith('mmcv_stand_in.pth: ')


def test_a_bad_value_of_the_variable_costs_one_line_and_not_pythons_start(python):
    python(TOOL, '--install')
    done = python('-c', 'print("runs")', MMCV_STAND_IN='off')
    assert (done.returncode, done.stdout) == (0, 'runs\n')
    assert len(done.stderr.splitlines()) == 1 and "got 'off'" in done.stderr


def test_the_line_is_ascii_whatever_the_folder_is_called(tmp_path):
    """Before Python 3.13 it is read in the encoding of the system."""
    folder = tmp_path / 'J\u00fcrgen'
    folder.mkdir()
    (folder / '__init__.py').write_text('def install():\n    print("found")\n')
    line = startup.line(str(folder))
    assert line.isascii()
    ran = subprocess.run([sys.executable, '-S', '-c', line], capture_output=True, text=True, check=True)
    assert ran.stdout == 'found\n' and not ran.stderr


def test_the_line_leaves_no_names_behind_where_python_runs_it():
    line = startup.line('/no/such/folder')
    assert line.startswith('import ') and line.count('\n') == 1 and line.endswith('\n')
    names = {}
    exec(line, names)
    assert set(names) == {'__builtins__', 'os', 'sys'}


def test_the_program_says_what_is_in_use(capsys):
    assert load_tool('misc/operators.py').main([]) == 0
    report = capsys.readouterr().out
    if mmcv_stand_in.is_active():
        assert 'stand-ins, from ' in report and 'softnms' in report and 'carafe' in report
    else:
        assert 'compiled operators, ' in report and 'stand-ins, from' not in report


def test_a_folder_that_cannot_be_written_to_gives_one_line(monkeypatch, capsys, tmp_path):
    tool = load_tool('misc/operators.py')
    monkeypatch.setattr(startup, 'path', lambda: tmp_path / 'no' / 'such' / 'folder' / startup.NAME)
    assert tool.main(['--install']) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and 'cannot be written (No such file or directory). Cure: ' in error


def test_an_environment_without_mmcv_gives_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    assert load_tool('misc/operators.py').main([]) == 1
    assert capsys.readouterr().err.startswith('no operators of mmcv (')
