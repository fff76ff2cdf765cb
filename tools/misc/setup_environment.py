#!/usr/bin/env python3
"""Make an environment in which mmdet_diffusion runs: what ``make setup`` calls.

Steps: a virtual environment (or the one that is there), torch (or the one that is there), the versions in
requirements/lock.txt and tests.txt (with ``--stack onedl`` the maintained forks in lock-onedl.txt), mmcv with its
operators (built here, the long part), this project in editable form, a check of it all. A stamp in the environment
makes the next run return at once. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from check_environment import (
    OPENMMLAB,
    OWN_ENVIRONMENT,
    ROOT,
    Fault,
    canonical,
    check_openmmlab_version,
    check_python_version,
    read_requirements,
    satisfies,
)
from setup_mmcv import Distribution, cached_wheel, provide_mmcv, require_compiler
from setup_progress import run_step

HERE = Path(__file__).resolve().parent
CHECK_SCRIPT = HERE / 'check_environment.py'
LOCK_FILES = (ROOT / 'requirements' / 'lock.txt', ROOT / 'requirements' / 'tests.txt')
FORKS_FILE = ROOT / 'requirements' / 'lock-onedl.txt'
FORKS = {'mmengine': 'onedl-mmengine', 'mmcv': 'onedl-mmcv', 'mmdet': 'onedl-mmdetection'}  # by module
STACKS = ('openmmlab', 'onedl')
TORCH_FOR_LOCK = '>=2.3'  # older ones were built for numpy 1, and the lock has numpy 2


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

    def ask(self, argument: str) -> str:
        """Answer of check_environment.py under this environment's Python, away from the clone; its fault is ours."""
        command = [self.python, str(CHECK_SCRIPT), argument]
        answer = subprocess.run(command, capture_output=True, text=True, cwd=self.python.parent)
        if answer.returncode:
            raise Fault((answer.stderr.strip().splitlines() or [f'{self.python} does not run'])[-1])
        return answer.stdout

    def pip_install(self, *arguments: str) -> list:
        return [self.python, '-m', 'pip', 'install', '--disable-pip-version-check', *arguments]

    def look_again(self) -> Environment:
        return self._replace(info=json.loads(self.ask('--describe')))


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


def read_lock(stack: str) -> dict[str, str]:
    """{name: version} of the lock files. Every line is exact: a range there would be a mistake."""
    lock = {name: specifier for path in LOCK_FILES for name, specifier in read_requirements(path).items()}
    if stack == 'onedl':
        stock = {name: specifier for name, specifier in lock.items() if name not in OPENMMLAB}
        lock = stock | read_requirements(FORKS_FILE)
    loose = [name for name, specifier in lock.items() if not specifier.startswith('==')]
    if loose:
        raise Fault(f'{", ".join(loose)} in requirements/ must name one version, as in {loose[0]}==1.2.3')
    return {name: specifier[2:] for name, specifier in lock.items()}


def distributions(lock: dict[str, str]) -> dict[str, str]:
    """Of the modules that more than one distribution brings, the one in the lock."""
    by_module = {module: fork if fork in lock else module for module, fork in FORKS.items()}
    return {**by_module, 'cv2': 'opencv-python-headless'}


def kept_modules(lock: dict[str, str], providers: dict[str, list[str]]) -> list[str]:
    """Modules that another distribution than the lock's brings already: a fork of OpenMMLab's, another OpenCV build."""
    wanted = distributions(lock)
    return [module for module, name in wanted.items() if providers[module] and name not in providers[module]]


def to_install(lock: dict[str, str], info: dict) -> list[str]:
    """'name==version' of what is missing or of another version. mmcv is not among them: it gets a step of its own."""
    names = distributions(lock)
    left_out = {names['mmcv'], *(names[module] for module in kept_modules(lock, info['providers']))}
    return [
        f'{name}=={version}'
        for name, version in lock.items()
        if name not in left_out and info['versions'].get(canonical(name)) != version
    ]


def fingerprint(environment: Environment, lock: dict[str, str]) -> str:
    """Changes with all that set-up depends on: what is asked for, the set-up itself, what is installed."""
    requirements = (*LOCK_FILES, FORKS_FILE, ROOT / 'requirements.txt')
    files = (*requirements, ROOT / 'setup.py', CHECK_SCRIPT, *sorted(HERE.glob('setup_*.py')))
    state = {
        'project': str(ROOT),
        'files': [hashlib.sha256(path.read_bytes()).hexdigest() for path in files],
        'python': environment.info['python'],
        'providers': environment.info['providers'],
        'versions': {name: environment.version(name) for name in (*lock, 'torch', 'mmdet_diffusion')},
    }
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def is_ready(environment: Environment, lock: dict[str, str]) -> bool:
    return environment.stamp.exists() and environment.stamp.read_text() == fingerprint(environment, lock)


def refuse_unsupported(environment: Environment) -> None:
    """Of an environment that set-up did not make: do not replace what its owner chose, say what does not fit."""
    if environment.stamp.exists():
        return
    torch = environment.version('torch')
    if torch and not satisfies(torch, TORCH_FOR_LOCK):
        raise Fault(
            f'torch {torch} in {environment.path} does not work with the numpy 2 of requirements/lock.txt, which needs '
            f'torch{TORCH_FOR_LOCK}. Cure: {OWN_ENVIRONMENT}, or install the ranges in requirements.txt by hand'
        )
    for module in OPENMMLAB:
        names = environment.info['providers'][module]
        check_openmmlab_version(module, environment.info['versions'], names, str(environment.path))


def refuse_stock_beside_forks(environment: Environment, lock: dict[str, str]) -> None:
    """Where the forks are asked for, a stock distribution would be tested in their place, or overwritten by them."""
    for module, fork in FORKS.items():
        names = environment.info['providers'][module]
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
        run_step(f'installing {requirement}', environment.pip_install(*shlex.split(requirement)), environment.log)


def install_locked(environment: Environment, lock: dict[str, str]) -> None:
    """--no-deps, since the lock is complete: so nothing can pull in another torch, or the stock twin of a fork."""
    for module in kept_modules(lock, environment.info['providers']):
        print(f'setup: keeping {", ".join(environment.info["providers"][module])} for {module}', flush=True)
    wanted = to_install(lock, environment.info)
    if wanted:
        title = f'installing {len(wanted)} packages of the lock'
        run_step(title, environment.pip_install('--no-deps', *wanted), environment.log)


def install_project(environment: Environment) -> None:
    """Editable: an edit in the clone takes effect at once."""
    arguments = ('--no-deps', '--no-build-isolation', '--editable', str(ROOT))
    run_step('installing this project', environment.pip_install(*arguments), environment.log)


def install_all(environment: Environment, lock: dict[str, str], torch_requirement: str) -> Environment:
    environment.log.write_text('')
    mmcv = Distribution(distributions(lock)['mmcv'], lock[distributions(lock)['mmcv']])
    if not environment.info['providers']['mmcv'] and not cached_wheel(environment, mmcv):
        require_compiler(environment.info)  # before gigabytes are fetched for nothing
    install_torch(environment, torch_requirement)
    install_locked(environment.look_again(), lock)
    environment.ask('setuptools')
    environment.ask('torch')
    provide_mmcv(environment.look_again(), mmcv)
    install_project(environment)
    environment.ask('all')
    environment = environment.look_again()
    environment.stamp.write_text(fingerprint(environment, lock))
    return environment


def set_up(path: Path, torch_requirement: str, stack: str) -> None:
    lock = read_lock(stack)
    environment = open_environment(path)
    refuse_stock_beside_forks(environment, lock)
    if not is_ready(environment, lock):
        refuse_unsupported(environment)
        environment = install_all(environment, lock, torch_requirement)
    print(f'setup: {path} is ready (Python {environment.info["python"]}, torch {environment.version("torch")})')


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--venv', default='.venv', help='the environment; made when there is none (default: .venv)')
    parser.add_argument('--torch', default='torch', help="pip's words for the torch to install where there is none")
    parser.add_argument(
        '--stack',
        choices=STACKS,
        default='openmmlab',
        help="whose mmengine, mmcv and mmdet: OpenMMLab's or the maintained forks (default: openmmlab)",
    )
    parser.add_argument(
        '--print-environment',
        action='store_true',
        help='only print the environment that the Python running this belongs to, or .venv when it belongs to none',
    )
    args = parser.parse_args(argv)
    if args.print_environment:
        print(environment_of_this_python() or '.venv')
        return 0
    try:
        set_up(Path(os.path.abspath(args.venv)), args.torch, args.stack)
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
