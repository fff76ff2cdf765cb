"""The command ``mmdet-diffusion``: what it answers by itself, and how it runs the programs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmdet_diffusion_cli
from mmdet_diffusion_cli import light_module, main, overview, run
from mmdet_diffusion_cli.commands import COMMANDS, SHAPES, Command

ROOT = Path(__file__).resolve().parents[1]
NAMES = [command.name for command in COMMANDS]


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program that says how it was run, as the only one there is."""
    (tmp_path / 'tools' / 'folder').mkdir(parents=True)
    (tmp_path / 'tools' / 'folder' / 'neighbour.py').write_text('VALUE = 5\n')
    script = tmp_path / 'tools' / 'folder' / 'program.py'
    script.write_text('import json, sys, neighbour\n'
                      'print(json.dumps([__name__, sys.argv, neighbour.VALUE]))\n'
                      'sys.exit(3)\n')
    zoo = light_module('config_zoo')
    monkeypatch.setattr(zoo, 'tools_folder', lambda: tmp_path / 'tools')
    modules = dict(config_zoo=zoo, installation=light_module('installation'), version=light_module('version'))
    monkeypatch.setattr(mmdet_diffusion_cli, 'light_module', modules.__getitem__)
    monkeypatch.setattr(sys, 'argv', sys.argv)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    return script


def test_an_interrupted_program_ends_in_one_line_as_shells_expect(program, capsys):
    program.write_text('raise KeyboardInterrupt\n')
    assert run(Command('x', 'folder/program.py', '', '', takes_config=False, needs_openmmlab=False), []) == 130
    assert capsys.readouterr().err == 'mmdet-diffusion: interrupted\n'


def test_help_lists_every_command_in_few_lines_with_an_example(capsys):
    assert main(['--help']) == 0
    printed = capsys.readouterr().out
    assert all(re.search(rf'^  {command.name} +{re.escape(command.summary)}$', printed, re.MULTILINE)
               for command in COMMANDS)
    assert f'mmdet-diffusion demo {COMMANDS[0].example}' in printed
    assert len(printed.splitlines()) < 25
    assert main([]) == 0 and capsys.readouterr().out == printed


def test_every_command_has_its_program():
    assert set(NAMES) == {'demo', 'train', 'test', 'predict', 'animate', 'web', 'dial', 'compare', 'curves',
                          'export', 'convert', 'shapes', 'sizes', 'configs', 'doctor', 'operators'}
    assert len(set(NAMES)) == len(NAMES)
    assert all((ROOT / 'tools' / command.script).is_file() for command in COMMANDS)


@pytest.mark.parametrize(('typed', 'answer'), [('trian', 'near it: train'), ('config', 'near it: configs'),
                                               ('xyzxyz', 'the commands are demo, train, test')])
def test_an_unknown_command_is_answered_with_near_names(capsys, typed, answer):
    assert main([typed]) == 1
    printed = capsys.readouterr()
    assert f"there is no command '{typed}'; {answer}" in printed.err and printed.err.count('\n') == 1
    assert not printed.out


def test_version_is_printed(capsys):
    assert main(['--version']) == 0
    assert capsys.readouterr().out.strip() == light_module('version').__version__


def test_a_program_runs_as_a_script_with_its_arguments_its_neighbours_and_its_status(program, capsys):
    with pytest.raises(SystemExit) as ended:
        run(Command('name', 'folder/program.py', '', ''), ['one', '--two'])
    assert ended.value.code == 3
    assert json.loads(capsys.readouterr().out) == ['__main__', [str(program), 'one', '--two'], 5]


def test_help_of_a_command_starts_with_an_example(program, monkeypatch, capsys):
    monkeypatch.setattr(mmdet_diffusion_cli, 'COMMANDS', (Command('go', 'folder/program.py', 'goes', 'FILE'),))
    with pytest.raises(SystemExit):
        main(['go', '--help'])
    assert capsys.readouterr().out.startswith('goes\n\nexample:\n  mmdet-diffusion go FILE\n\n')


def test_a_wrong_config_name_ends_before_the_program_starts(program, capsys):
    command = Command('train', 'folder/program.py', '', '', takes_config=True)
    with pytest.raises(SystemExit, match="^no config is called 'diffusiondet_r50_coco'; near it: diffusiondet_r50"):
        run(command, ['diffusiondet_r50_coco'])
    with pytest.raises(SystemExit, match=f'^there is no config file some/{SHAPES}x.py; near it, by name: {SHAPES}'):
        run(command, [f'some/{SHAPES}x.py'])
    assert capsys.readouterr().out == ''


def test_a_config_name_reaches_the_program_as_a_path(program, capsys):
    with pytest.raises(SystemExit):
        run(Command('train', 'folder/program.py', '', '', takes_config=True), [SHAPES, '--amp'])
    assert json.loads(capsys.readouterr().out)[1][1:] == [light_module('config_zoo').config_path(SHAPES), '--amp']


def test_without_mmdet_one_line_names_the_cure_before_the_program_starts(program, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    assert run(Command('go', 'folder/program.py', '', ''), []) == 1
    printed = capsys.readouterr()
    assert not printed.out and printed.err.count('\n') == 1
    assert 'needs mmdet, not installed here. Cure: in a clone of it, pip install ".[lite]"' in printed.err
    with pytest.raises(SystemExit):
        run(Command('go', 'folder/program.py', '', '', needs_openmmlab=False), [])


def test_an_exported_folder_needs_nothing_wherever_it_stands(program, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    (tmp_path / 'sampler.json').touch()
    command = Command('look', 'folder/program.py', '', '', takes_config=True, takes_export=True)
    for args in ([str(tmp_path), 'pictures', '--steps', '4'], ['--steps', '4', str(tmp_path), 'pictures']):
        with pytest.raises(SystemExit):
            run(command, args)
        assert json.loads(capsys.readouterr().out)[1][1:] == args


# In a process of its own ----------------------------------------------------------------------------------------------


def call(*args, program='mmdet_diffusion_cli'):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    start = ['-c', f'import sys, {program}; code = {program}.main(); print("torch" in sys.modules); sys.exit(code)']
    return subprocess.run([sys.executable, *start, *args], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize('args', [['--help'], ['--version'], ['nonsense']])
def test_what_the_command_answers_by_itself_imports_no_torch(args):
    assert call(*args).stdout.splitlines()[-1] == 'False'


def test_configs_are_listed_and_wrong_names_refused_without_torch():
    code = ("import sys; sys.modules['torch'] = None\nimport mmdet_diffusion_cli as cli\n"
            'sys.exit(cli.main(sys.argv[1:]))')
    listed = subprocess.run([sys.executable, '-c', code, 'configs', 'list'], cwd=ROOT, capture_output=True, text=True)
    assert listed.stdout.split() == light_module('config_zoo').list_configs()
    refused = subprocess.run([sys.executable, '-c', code, 'test', 'diffusiondet_r50', 'some.pth'], cwd=ROOT,
                             capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.startswith("no config is called 'diffusiondet_r50'; near it")


def test_the_package_is_the_command_too():
    done = subprocess.run([sys.executable, '-m', 'mmdet_diffusion', '--help'], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith(overview() + '\n'), done.stderr  # what the import logs may come first
