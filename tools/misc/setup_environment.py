#!/usr/bin/env python3
"""Make an environment in which mmdet_diffusion runs: what ``make setup`` calls.

Steps: a virtual environment (or the one that is there), torch (or the one that is there), the versions in
requirements/, this project in editable form, mmcv's operators in torch (``--lock compiled``: built here), a check of it
all. A stamp in the environment makes the next run return at once. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from check_environment import (
    DISTRIBUTIONS,
    OPENMMLAB,
    OWN_ENVIRONMENT,
    ROOT,
    Fault,
    canonical,
    check_openmmlab,
    check_python_version,
    read_requirements,
    satisfies,
    version_numbers,
)
from setup_compiled import BUILD_FAILURES, provide_compiled_mmcv, require_compiler

HERE = Path(__file__).resolve().parent
LOCK_FILES = (ROOT / 'requirements' / 'lock.txt', ROOT / 'requirements' / 'tests.txt')
LOCKS = {  # what is laid over those
    'stand-in': None,
    'compiled': 'lock-compiled.txt',
    'onedl': 'lock-onedl.txt',
    'oldest': 'lock-oldest.txt',
}
PYTHON_FOR_NUMPY_2 = (3, 11)  # of the version in lock.txt
TORCH_FOR_NUMPY_2 = '>=2.3'  # older ones were built for numpy 1
TAIL = 15  # lines of output shown with a failure of unknown cause

KNOWN_FAILURES = {
    r'NewConnectionError|NameResolutionError|ConnectTimeoutError|ProxyError|Temporary failure in name resolution'
    r'|Network is unreachable|Max retries exceeded|Connection refused': (
        'the package index cannot be reached. Cure: check the network and the proxy, or name a source that can be '
        'reached in PIP_INDEX_URL or PIP_FIND_LINKS'
    ),
    r'No space left on device': 'the disk is full. Cure: make room, or put the environment elsewhere with VENV=',
    r'externally-managed-environment': "this Python is the system's. Cure: make setup without VENV= and PYTHON=",
    r'Cannot install (.+?) because these package versions have conflicting dependencies': (
        '{} does not fit the rest of what is asked for, or a constraint in your settings of pip (pip config list). '
        'Cure: another version, for torch in TORCH=, or without that constraint'
    ),
    r'No matching distribution found for (\S+)': (
        '{} is not to be had for this Python and machine. Cure: Python 3.11 in PYTHON=; for a torch: TORCH='
    ),
    **BUILD_FAILURES,
}


def explain_failure(output: str) -> str:
    """One line with the cure where the cause is known, else the end of the output."""
    for pattern, explanation in KNOWN_FAILURES.items():
        match = re.search(pattern, output)
        if match:
            return explanation.format(*match.groups())
    return 'its last lines:\n  ' + '\n  '.join(output.strip().splitlines()[-TAIL:])


class Environment(NamedTuple):
    """A directory with bin/python, and what its Python says of itself (check_environment.describe)."""

    path: Path
    python: Path
    info: dict

    @property
    def stamp(self) -> Path:
        return self.path / 'mmdet_diffusion-setup.stamp'

    @property
    def log(self) -> Path:
        return self.path / 'mmdet_diffusion-setup.log'

    def version(self, name: str) -> str | None:
        return self.info['versions'].get(canonical(name))

    def check(self, *arguments: str) -> str:
        """Answer of check_environment.py under this environment's Python, away from the clone; its fault is ours."""
        command = [self.python, str(HERE / 'check_environment.py'), *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, cwd=self.python.parent)
        if answer.returncode:
            raise Fault((answer.stderr.strip().splitlines() or [f'{self.python} does not run'])[-1])
        return answer.stdout.strip().splitlines()[-1]  # what a library may print on import comes before

    def look_again(self) -> Environment:
        return self._replace(info=json.loads(self.check('--describe')))

    def run(self, title: str, *arguments: str, **variables: str) -> str:
        """A step by this environment's Python: its output to the log and to the caller, or its failure explained."""
        print(f'setup: {title}', flush=True)
        command = [self.python, *arguments]
        with self.log.open('a+') as log:
            print(f'\n$ {shlex.join(map(str, command))}', file=log, flush=True)
            start = log.tell()
            environ = {**os.environ, **variables}
            code = subprocess.run(command, stdout=log, stderr=log, cwd=self.path, env=environ).returncode
            log.seek(start)
            output = log.read()
        if code:
            raise Fault(f'{title} failed: {explain_failure(output)} (its whole output: {self.log})')
        return output

    def pip_install(self, title: str, *arguments: str, **variables: str) -> str:
        """Byte code is left to Python, which makes it for what is imported: torch alone has thousands of modules."""
        options = ('--disable-pip-version-check', '--no-compile')
        return self.run(title, '-m', 'pip', 'install', *options, *arguments, **variables)


def environment_of_this_python() -> Path | None:
    """The virtual or conda environment that the running Python belongs to; None for a Python of the system."""
    prefix = Path(sys.prefix)
    return prefix if sys.prefix != sys.base_prefix or (prefix / 'conda-meta').is_dir() else None


def make_environment(path: Path) -> None:
    check_python_version(sys.version_info[:3], sys.executable)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise Fault(f'VENV={path} is there but is no Python environment. Cure: name another directory, or remove it')
    print(f'setup: making {path} with Python {sys.version.split()[0]}', flush=True)
    made = subprocess.run([sys.executable, '-m', 'venv', str(path)], capture_output=True, text=True)
    if made.returncode:
        shutil.rmtree(path, ignore_errors=True)  # it was absent or empty; half of one would pass for one
        reason = (made.stderr + made.stdout).strip().splitlines() or ['no message']
        raise Fault(
            f'{path} cannot be made ({reason[0]}). Cure: in VENV= a directory that can be written; on Debian and '
            f'Ubuntu also: apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv'
        )


def open_environment(path: Path) -> Environment:
    """The environment at ``path``, made with the running Python when there is none."""
    python = path / 'bin' / 'python'
    if not python.exists():
        make_environment(path)
    environment = Environment(path, python, {}).look_again()
    if not environment.version('pip'):  # as in those that uv makes, and in a set-up that was interrupted
        subprocess.run([python, '-m', 'ensurepip'], capture_output=True)
        environment = environment.look_again()
    if not environment.version('pip'):
        raise Fault(f'{path} has no pip, and ensurepip gives none. Cure: install pip there, or remove the directory')
    return environment


def read_lock(overlay: str) -> dict[str, str]:
    """{distribution: version} of the lock files. Every line is exact: a range there would be a mistake."""
    lock = {name: specifier for path in LOCK_FILES for name, specifier in read_requirements(path).items()}
    if LOCKS[overlay]:
        over = read_requirements(ROOT / 'requirements' / LOCKS[overlay])
        replaced = {name for names in DISTRIBUTIONS.values() if over.keys() & set(names) for name in names}
        lock = {name: specifier for name, specifier in lock.items() if name not in replaced} | over
    loose = [name for name, specifier in lock.items() if not specifier.startswith('==')]
    if loose:
        raise Fault(f'{", ".join(loose)} in requirements/ must name one version, as in {loose[0]}==1.2.3')
    return {name: specifier[2:] for name, specifier in lock.items()}


def kept_modules(lock: dict[str, str], info: dict) -> list[str]:
    """Modules that another distribution than the lock's brings already: a fork, an mmcv with operators, an OpenCV."""
    return [module for module, names in info['providers'].items() if names and not lock.keys() & set(names)]


def to_install(lock: dict[str, str], info: dict) -> list[str]:
    """For pip, which passes over what is there. mmcv is not among it: with compiled operators it has to be built."""
    left_out = {'mmcv', *(name for module in kept_modules(lock, info) for name in DISTRIBUTIONS[module])}
    return [f'{name}=={version}' for name, version in lock.items() if name not in left_out]


def fingerprint(environment: Environment, lock: dict[str, str]) -> str:
    """Changes with all that set-up depends on: what is asked for, the set-up itself, what is installed."""
    files = (ROOT / 'requirements.txt', ROOT / 'setup.py', *sorted(HERE.glob('*.py')))
    state = {
        'project': str(ROOT),
        'lock': lock,
        'files': [hashlib.sha256(path.read_bytes()).hexdigest() for path in files],
        'python': environment.info['python'],
        'providers': environment.info['providers'],
        'versions': {name: environment.version(name) for name in (*lock, 'torch', 'mmdet_diffusion')},
    }
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def is_ready(environment: Environment, lock: dict[str, str]) -> bool:
    return environment.stamp.exists() and environment.stamp.read_text() == fingerprint(environment, lock)


def refuse_unsupported(environment: Environment, lock: dict[str, str]) -> None:
    """Of an environment that set-up did not make: do not replace what its owner chose, say what does not fit."""
    torch = environment.version('torch')
    if torch and satisfies(lock['numpy'], '>=2') and not satisfies(torch, TORCH_FOR_NUMPY_2):
        raise Fault(
            f'torch {torch} in {environment.path} does not work with the numpy 2 of requirements/lock.txt, which needs '
            f'torch{TORCH_FOR_NUMPY_2}. Cure: {OWN_ENVIRONMENT}, or LOCK=oldest for the versions in '
            'requirements/lock-oldest.txt'
        )
    check_openmmlab(environment.info, str(environment.path))


def refuse_python_too_old(version: str, where: Path | str, lock: dict[str, str]) -> None:
    """Python 3.10 is supported, but not by the newest versions of what is needed."""
    if satisfies(lock['numpy'], '>=2') and (3, 10) <= version_numbers(version) < PYTHON_FOR_NUMPY_2:
        raise Fault(
            f'{where} is of Python {version}, and the numpy of requirements/lock.txt needs '
            '3.11. Cure: PYTHON=/path/to/python3.11, or LOCK=oldest for the versions in requirements/lock-oldest.txt'
        )


def refuse_stock_beside_forks(environment: Environment, lock: dict[str, str]) -> None:
    """Where the forks are asked for, a stock distribution would be tested in their place, or overwritten by them."""
    for module in OPENMMLAB:
        names = environment.info['providers'][module]
        fork = DISTRIBUTIONS[module][-1]
        if fork in lock and names not in ([], [fork]):
            raise Fault(
                f'{", ".join(names)} in {environment.path} brings {module}, which is to come from {fork}. '
                f'Cure: another directory in VENV_ONEDL=, where make test-onedl makes an environment'
            )


def install_torch(environment: Environment, requirement: str) -> None:
    """Only where there is none: one that is there fits its owner's GPU and driver, and is never replaced."""
    if environment.version('torch'):
        print(f'setup: keeping torch {environment.version("torch")}', flush=True)
    else:
        environment.pip_install(f'installing {requirement}', *shlex.split(requirement))


def install_locked(environment: Environment, lock: dict[str, str]) -> None:
    """--no-deps, since the lock is complete: so nothing can pull in another torch, or the stock twin of a fork."""
    for module in kept_modules(lock, environment.info):
        print(f'setup: keeping {", ".join(environment.info["providers"][module])} for {module}', flush=True)
    wanted = to_install(lock, environment.info)
    environment.pip_install(f'installing {len(wanted)} packages of the lock', '--no-deps', *wanted)


def install_project(environment: Environment) -> None:
    """Editable: an edit in the clone takes effect at once. The operators serve MMDetection's own programs as well."""
    arguments = ('--no-deps', '--no-build-isolation', '--editable', str(ROOT))
    environment.pip_install('installing this project', *arguments)
    environment.run("offering mmcv's operators in torch", str(HERE / 'operators.py'), '--install')


def install_all(environment: Environment, lock: dict[str, str], torch_requirement: str) -> Environment:
    environment.log.write_text('')
    if 'mmcv' in lock:
        require_compiler(environment)  # before gigabytes are fetched for nothing
    install_torch(environment, torch_requirement)
    install_locked(environment.look_again(), lock)
    install_project(environment)
    if 'mmcv' in lock:
        provide_compiled_mmcv(environment.look_again(), lock['mmcv'])
    print(f'setup: {environment.check()}', flush=True)
    environment = environment.look_again()
    environment.stamp.write_text(fingerprint(environment, lock))
    return environment


def set_up(path: Path, torch_requirement: str, lock_name: str) -> None:
    lock = read_lock(lock_name)
    if not (path / 'bin' / 'python').exists():
        refuse_python_too_old(sys.version.split()[0], sys.executable, lock)
    environment = open_environment(path)
    refuse_python_too_old(environment.info['python'], path, lock)
    refuse_stock_beside_forks(environment, lock)
    if not is_ready(environment, lock):
        if not environment.stamp.exists():
            refuse_unsupported(environment, lock)
        environment = install_all(environment, lock, torch_requirement)
    print(f'setup: {path} is ready (Python {environment.info["python"]}, torch {environment.version("torch")})')


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--venv', default='.venv', help='the environment; made when there is none (default: .venv)')
    parser.add_argument('--torch', default='torch', help="pip's words for the torch to install where there is none")
    lock = "mmcv's operators in torch or compiled; the maintained forks, or the oldest versions (default: stand-in)"
    parser.add_argument('--lock', choices=LOCKS, default='stand-in', help=lock)
    only = 'only print the environment that the Python running this belongs to, or .venv when it belongs to none'
    parser.add_argument('--print-environment', action='store_true', help=only)
    args = parser.parse_args(argv)
    if args.print_environment:
        print(environment_of_this_python() or '.venv')
        return 0
    try:
        set_up(Path(os.path.abspath(args.venv)), args.torch, args.lock)
    except Fault as fault:
        print(f'setup: {fault}', file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f'setup: {error.filename} cannot be written. Cure: in VENV= a directory of your own', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('setup: interrupted; make setup goes on from here', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
