"""What make would run; ``make`` itself is run by whoever runs these tests with it."""

import os
import re
import subprocess
import sys

import pytest
from fake_environment import ROOT, setup

ENVIRONMENTS = ('VENV', 'VENV_COMPILED', 'VENV_ONEDL', 'VENV_OLDEST', 'TORCH_OLDEST', 'PYTHON_OLDEST',
                'OPERATORS', 'LOCK', 'PYTHON')
GIVEN = (*ENVIRONMENTS, 'TESTS', 'TEST_ARGS', 'MAKEFLAGS', 'MAKEOVERRIDES', 'MFLAGS', 'MAKELEVEL')


def make(*arguments: str, **variables: str) -> str:
    """What make would run, whatever variables the make that runs these tests was given."""
    environ = {name: value for name, value in os.environ.items() if name not in GIVEN} | variables
    command = ['make', '--dry-run', *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environ).stdout


def test_make_test_sets_up_first_and_runs_all_tests():
    commands = make('test', 'VENV=/env')
    assert commands.index("setup_environment.py --venv '/env'") < commands.index('/env/bin/python -m pytest tests -q')


@pytest.mark.parametrize('name', ['compiled', 'onedl', 'oldest'])
def test_other_stacks_are_tested_in_environments_of_their_own(name):
    variable = f'VENV_{name.upper()}'
    for arguments, directory in (((), f'.venv-{name}'), ((f'{variable}=/other', 'VENV=/stock'), '/other')):
        commands = make(f'test-{name}', *arguments)
        assert re.search(rf"setup_environment\.py --venv '{directory}' --torch '.*' --lock '{name}'", commands)
        assert f'{directory}/bin/python -m pytest tests -q' in commands
        assert '/stock' not in commands


def test_the_oldest_versions_come_with_the_oldest_torch_and_python():
    commands = make('test-oldest')
    assert "--torch 'torch==2.1.0' --lock 'oldest'" in commands and "for python in 'python3.10'" in commands
    assert "--torch 'torch==2.1.2'" in make('test-oldest', 'TORCH_OLDEST=torch==2.1.2')
    assert "for python in '/py'" in make('test-oldest', 'PYTHON_OLDEST=/py')


def test_operators_are_compiled_only_where_that_is_asked_for():
    assert "--lock 'stand-in'" in make('test') and "--lock 'stand-in'" in make('setup')
    assert "--lock 'compiled'" in make('setup', 'OPERATORS=compiled')


def test_some_tests_can_be_chosen():
    command = make('test', 'TESTS=tests/test_ops tests/test_heads', 'TEST_ARGS=-x').splitlines()[-1]
    shares = r'-n \d+ --dist loadfile --no-loadscope-reorder'
    assert re.search(f'-m pytest tests/test_ops tests/test_heads -q {shares} -x$', command)


def test_a_missing_browser_fails_the_tests_of_the_page():
    commands = make('test-page', 'VENV=/env')
    tests = commands.index('BROWSER_TESTS=required /env/bin/python -m pytest')
    assert commands.index('requirements/browser.txt') < tests


def test_python_keeps_what_it_compiles_whatever_the_container_says():
    command = ['make', '--silent', '--eval', 'shown: ; @env', 'shown']
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True,
                           env=dict(os.environ, PYTHONDONTWRITEBYTECODE='1', OTHER='1')).stdout.splitlines()
    assert 'OTHER=1' in shown and not any(line.startswith('PYTHONDONTWRITEBYTECODE=') for line in shown)


def test_python_of_an_environment_means_that_environment():
    own = setup.environment_of_this_python() or '.venv'
    assert f' {own}/bin/python -m pytest' in make('test', f'PYTHON={sys.executable}')
    assert ' .venv/bin/python -m pytest' in make('test')
    assert ' /other/bin/python -m pytest' in make('test', f'PYTHON={sys.executable}', 'VENV=/other')
    assert ' /other/bin/python -m pytest' in make('test', PYTHON=sys.executable, VENV='/other')  # from the environment
