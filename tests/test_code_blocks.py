"""Code in the documents: command lines are read by their programs' parsers, config fragments built, the rest run.
Command lines are run by ``test_documented_commands.py``.

A block that is no command line says in a comment above it, which no page shows, what becomes of it: ``merged into
CONFIG``, ``run by TEST`` or ``not run: REASON``.
"""

import argparse
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import mmdet
import pytest
from documented_code import BLOCKS, COMMAND_LINES
from mmdet.registry import HOOKS, MODELS, VISBACKENDS
from mmdet.utils import register_all_modules
from mmengine.config import Config

from mmdet_diffusion import config_path, list_configs
from mmdet_diffusion.testing import REPOSITORY, load_tool
from mmdet_diffusion_cli.commands import COMMANDS

SCRIPTS = {command.name: command.script for command in COMMANDS}
# Programs that are not of this project: their words are not looked at.
FOREIGN = {'git', 'mkdir', 'cp', 'export', 'for', 'do', 'done', 'srun', 'torchrun', 'python3.11', '.'}
EXTRAS = set(re.findall(r"'(\w+)': ", (REPOSITORY / 'setup.py').read_text()))
MARKED = [block for block in BLOCKS if block.language != 'bash' and not block.language.startswith('{')]  # Sphinx's


def test_every_block_is_seen():
    fences = sum(len(re.findall('^```', path.read_text(), re.MULTILINE))
                 for path in [REPOSITORY / 'README.md', *(REPOSITORY / 'docs').glob('*.md')])
    assert fences == 2 * len(BLOCKS) and len(COMMAND_LINES) > 40


# Command lines --------------------------------------------------------------------------------------------------------


class Read(Exception):
    """The parser has read the arguments."""


@pytest.fixture
def parsers(monkeypatch):
    """Parsers end their program once they have read its arguments."""
    read = argparse.ArgumentParser.parse_args

    def parse_args(self, *args, **kwargs):
        raise Read(read(self, *args, **kwargs))

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_args)


def script_of(name):
    """A program of ours, or for ``train.py`` and ``test.py`` that of MMDetection which they run."""
    if name not in ('train.py', 'test.py'):
        return load_tool(name)
    path = Path(mmdet.__file__).parent / '.mim' / 'tools' / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_arguments(name, args):
    """Arguments as the program's own parser has them; SystemExit where it refuses them."""
    script = script_of(name)
    with mock.patch.object(sys, 'argv', [name, *args]), pytest.raises(Read) as done:
        script.parse_args() if name in ('train.py', 'test.py') else script.main()
    return done.value.args[0]


def checked_line(words):
    """Read a command line of this project; AssertionError, or the parser's SystemExit, where something is wrong."""
    if '-m' in words and words[words.index('-m') + 1] == 'mmdet_diffusion':  # after torchrun
        words = ['mmdet-diffusion', *words[words.index('-m') + 2:]]
    program, *args = words
    if program == 'mmdet-diffusion' and args and args[0] in SCRIPTS:
        checked_config(read_arguments(SCRIPTS[args[0]], args[1:]))
    elif program == 'mmdet-diffusion':
        assert not args, f'there is no command {args[0]}'
    elif program == 'python' and args[0].startswith('tools/'):
        checked_config(read_arguments(args[0].removeprefix('tools/'), args[1:]))
    elif program == 'python':
        assert args[0] == '$MMDET/train.py', args[0]
    elif program == 'make':
        checked_make(args)
    elif program == 'pip':
        assert args[0] in ('install', 'wheel')
        extras = {extra for arg in args for extra in re.findall(r'(?:mmdet_diffusion|\.)\[([\w,]+)\]', arg)}
        assert {part for extra in extras for part in extra.split(',')} <= EXTRAS
    else:
        assert program in FOREIGN, program


def checked_config(args):
    """A config that is named exists, and takes the keys of ``--cfg-options`` that are of the model."""
    name = getattr(args, 'config', None)
    if not isinstance(name, str):
        return
    if name == 'exported':  # in place of a config
        return
    known = 'diffusiondet_r18_fpn_1xb4-4k_shapes' if name == 'CONFIG' else name
    if name.startswith('my_configs/'):  # that `configs new` makes
        known = load_tool('misc/configs.py').new_config.BASE
    assert known in list_configs() or (REPOSITORY / known).is_file(), f'there is no config {name}'
    options = {key: value for key, value in dict(getattr(args, 'cfg_options', None) or {}).items()
               if key.startswith('model.')}
    if options:
        config = Config.fromfile(config_path(known) if known in list_configs() else known)
        config.merge_from_dict(options)
        built(config.model)


def built(model):
    """A model of a config, without weights."""
    register_all_modules(init_default_scope=True)
    model.backbone.pop('init_cfg', None)
    return MODELS.build(model)


def checked_make(args):
    makefile = (REPOSITORY / 'Makefile').read_text()
    for arg in args:
        variable, is_assigned, _ = arg.partition('=')
        form = rf'^{variable} [?:]?=|\$\({variable}\)' if is_assigned else rf'^{arg}:'
        assert re.search(form, makefile, re.MULTILINE), f'the Makefile has no {arg}'


@pytest.mark.parametrize(('block', 'words'), COMMAND_LINES,
                         ids=[f'{block}-{place}' for place, (block, _) in enumerate(COMMAND_LINES)])
def test_a_command_line_is_one_that_its_program_takes(parsers, block, words):
    checked_line(words)


@pytest.mark.parametrize('line', [
    'mmdet-diffusion predcit CONFIG CHECKPOINT a.jpg', 'mmdet-diffusion predict CONFIG CHECKPOINT a.jpg --stepps 4',
    'mmdet-diffusion dial CONFIG CHECKPOINT --settings 1by100', 'mmdet-diffusion train none', 'make tset',
    'make test TETS=a',
    'mmdet-diffusion test CONFIG CHECKPOINT --cfg-options model.test_cfg.sampling_steps=4', 'python tools/none.py',
    'pip install ".[none]"', 'unknown --program'])
def test_a_line_that_is_wrong_is_seen(parsers, line):
    with pytest.raises((AssertionError, SystemExit, FileNotFoundError, ValueError, pytest.fail.Exception)):
        checked_line(shlex.split(line))


# Other blocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('block', MARKED, ids=str)
def test_a_block_says_what_becomes_of_it(block):
    if block.mark.startswith('run by '):
        test = REPOSITORY / block.mark.removeprefix('run by ')
        assert test.is_file() and Path(block.document).name in test.read_text(), block.mark
    else:
        assert block.mark.startswith('merged into ') or re.match(r'not run: .{10}', block.mark), (
            f'{block} needs a comment above it: <!-- merged into CONFIG -->, <!-- run by TEST --> or '
            '<!-- not run: WHY -->')


FRAGMENTS = [block for block in BLOCKS if block.mark.startswith('merged into ')]


@pytest.mark.parametrize('block', FRAGMENTS, ids=str)
def test_a_config_fragment_is_built_in_its_config(block, tmp_path):
    name = block.mark.removeprefix('merged into ')
    (tmp_path / 'config.py').write_text(f'_base_ = {config_path(name)!r}\n{block.code}')
    config = Config.fromfile(tmp_path / 'config.py')
    given = set(re.findall(r'^(\w+) =', block.code, re.MULTILINE))
    assert given and given <= {'model', 'custom_hooks', 'visualizer'}
    if 'model' in given:
        built(config.model)
    for hook in config.custom_hooks if 'custom_hooks' in given else ():
        HOOKS.build(hook)
    for backend in config.visualizer.vis_backends if 'visualizer' in given else ():
        assert VISBACKENDS.get(backend.type) is not None


def test_the_blocks_of_the_readme_and_of_predict_run(tmp_path):
    """README.md and docs/tools.md: the Python that detects, on made weights and pictures, as a program."""
    import torch
    from PIL import Image

    shapes = Config.fromfile(config_path('diffusiondet_r18_fpn_1xb4-4k_shapes'))
    torch.save(dict(state_dict=built(shapes.model).state_dict()), tmp_path / 'CHECKPOINT.pth')
    shapes.dump(tmp_path / 'CONFIG.py')
    (tmp_path / 'folder').mkdir()
    for name in ('image.jpg', 'folder/a.jpg'):
        Image.new('RGB', (64, 48), 'red').save(tmp_path / name)
    for document, word in (('README.md', 'DetInferencer'), ('docs/tools.md', 'Predictor')):
        block, = [one for one in BLOCKS if one.document == document and word in one.code]
        assert block.mark == 'run by tests/test_code_blocks.py'
        done = subprocess.run([sys.executable, '-c', block.code], cwd=tmp_path, capture_output=True, text=True,
                              check=False, env=dict(os.environ, PYTHONPATH=str(REPOSITORY)))
        assert done.returncode == 0, done.stderr
    assert (tmp_path / 'out' / 'vis' / 'image.jpg').is_file()
    assert 'folder/a.jpg None' in done.stdout and 'clip.mp4 not there' in done.stdout
