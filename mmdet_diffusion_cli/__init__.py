"""The command ``mmdet-diffusion``: runs the programs in ``tools/`` of the installed package.

A package of its own, since importing a module of ``mmdet_diffusion`` imports torch and mmdet, which takes seconds: help
and errors come without them.
"""

import difflib
import importlib.util
import runpy
import signal
import sys
from pathlib import Path
from types import ModuleType

from .commands import COMMANDS, Command

PROGRAM = 'mmdet-diffusion'


def light_module(name: str) -> ModuleType:
    """A module of ``mmdet_diffusion`` that needs only the standard library, without importing the package."""
    package = Path(importlib.util.find_spec('mmdet_diffusion').origin).parent
    spec = importlib.util.spec_from_file_location(f'{__name__}.{name}', package / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(argv: list[str] | None = None) -> int:
    """Run a command with the rest of the arguments.

    Args:
        argv (list[str] | None): the command and its arguments; those of the process if None.

    Returns:
        int: exit status; a command may also end by SystemExit.
    """
    name, *args = (sys.argv[1:] if argv is None else argv) or ['--help']
    if name in ('-h', '--help'):
        print(overview())
        return 0
    if name == '--version':
        print(light_module('version').__version__)
        return 0
    command = next((command for command in COMMANDS if command.name == name), None)
    if command is None:
        return fail(unknown(name))
    if {'-h', '--help'} & set(args):
        print(f'{command.summary}\n\nexample:\n  {example(command)}\n', flush=True)
    return run(command, args)


def run(command: Command, args: list[str]) -> int:
    """Run the program as Python would run it as a script, after what can be refused without importing anything."""
    zoo = light_module('config_zoo')
    index = zoo.config_index(args)
    exported = command.takes_export and (
        Path(args[index]).is_dir() if index is not None else  # options come first
        any(Path(arg, 'sampler.json').is_file() for arg in args))
    if command.takes_config and not exported:
        args = zoo.with_config_path(args)
        zoo.refuse_missing_config(None if index is None else args[index])
    if command.needs_openmmlab and not exported:
        try:
            light_module('installation').check_installed()
        except ImportError as error:
            return fail(str(error))
    script = zoo.tools_folder() / command.script
    sys.argv = [str(script), *args]
    sys.path.insert(0, str(script.parent))  # programs import their neighbours
    try:
        runpy.run_path(str(script), run_name='__main__')
    except KeyboardInterrupt:
        print(f'{PROGRAM}: interrupted', file=sys.stderr)
        return 128 + signal.SIGINT  # as shells say it
    return 0


def fail(message: str) -> int:
    """Say what is wrong; gives the exit status."""
    print(f'{PROGRAM}: {message}', file=sys.stderr)
    return 1


def unknown(name: str) -> str:
    """Answer to a command that is not there, with those spelt alike."""
    names = [command.name for command in COMMANDS]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return (f'there is no command {name!r}; ' +
            (f'near it: {", ".join(near)}' if near else f'the commands are {", ".join(names)}'))


def example(command: Command) -> str:
    """A whole line to type."""
    return f'{PROGRAM} {command.name} {command.example}'.rstrip()


def overview() -> str:
    """Help of the program itself."""
    commands = COMMANDS
    width = max(len(command.name) for command in commands)
    rows = '\n'.join(f'  {command.name:{width}}  {command.summary}' for command in commands)
    return (f'usage: {PROGRAM} COMMAND [ARGUMENTS]\n\n'
            'DiffusionDet for MMDetection: object detection as denoising, from random boxes to objects.\n\n'
            f'{rows}\n\n`{PROGRAM} COMMAND --help` says more, `{PROGRAM} --version` which version this is. Example:\n'
            f'  {example(commands[0])}')
