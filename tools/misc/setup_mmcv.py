"""mmcv's compiled operators: what their build needs, the build, and the check of what came of it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from check_environment import Fault
from setup_progress import build_status, parse_build_step, run_step

MEMORY_PER_JOB = 2 * 2**30  # bytes that one compiler takes on one of mmcv's files


class Distribution(NamedTuple):
    """Of mmcv: OpenMMLab's own or the maintained fork, which has another name and the same module."""

    name: str
    version: str

    @property
    def requirement(self) -> str:
        return f'{self.name}=={self.version}'

    @property
    def file_name(self) -> str:
        """Its name in those of its wheels."""
        return self.name.replace('-', '_')


def find_compiler(environ: dict[str, str]) -> str:
    """The C++ compiler to build with."""
    for name in filter(None, (environ.get('CXX'), 'c++', 'g++', 'clang++')):
        if shutil.which(shlex.split(name)[0], path=environ.get('PATH', '')):
            return name
    raise Fault(
        "mmcv's operators have to be compiled and there is no C++ compiler (no $CXX, c++, g++ or clang++ in PATH). "
        'Cure: apt-get install g++, dnf install gcc-c++, xcode-select --install, or name yours in CXX='
    )


def check_compiler(compiler: str, include: str, python: str) -> None:
    """Compile nothing but two includes: finds missing Python headers and a compiler that is there but broken."""
    source = '#include <Python.h>\n#include <vector>\n'
    command = [*shlex.split(compiler), '-fsyntax-only', '-std=c++17', '-I', include, '-x', 'c++', '-']
    result = subprocess.run(command, input=source, capture_output=True, text=True)
    if result.returncode and not (Path(include) / 'Python.h').exists():
        minor = '.'.join(python.split('.')[:2])
        raise Fault(
            f'Python.h is not in {include}: the headers of Python {minor} are missing. Cure: apt-get install '
            f'python{minor}-dev, dnf install python{minor}-devel, or a Python that has them in PYTHON='
        )
    if result.returncode:
        first = (result.stderr.strip().splitlines() or ['no message'])[0]
        raise Fault(f'{compiler} cannot compile a file of two lines ({first}). Cure: mend it, or name another in CXX=')


def require_compiler(info: dict) -> None:
    check_compiler(find_compiler(dict(os.environ)), info['include'], info['python'])


def cached_wheel(environment, mmcv: Distribution) -> bool:
    """Whether pip has kept a wheel of mmcv that it built earlier: then no compiler is needed."""
    command = [environment.python, '-m', 'pip', 'cache', 'list', mmcv.file_name, '--format=abspath']
    tag = 'cp' + ''.join(environment.info['python'].split('.')[:2])
    return f'{mmcv.file_name}-{mmcv.version}-{tag}-' in subprocess.run(command, capture_output=True, text=True).stdout


def available_memory() -> int:
    """Bytes free for the build: of the machine, and of the container where there is one."""
    limits = [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')]
    with contextlib.suppress(OSError, TypeError):
        limits.append(int(re.search(r'MemAvailable:\s+(\d+)', Path('/proc/meminfo').read_text())[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # ValueError: the file may say 'max'
        limits.append(int(Path('/sys/fs/cgroup/memory.max').read_text()))
    return min(limits)


def build_jobs(cores: int, memory: int, asked: str | None) -> int:
    """How many compilers at once: MAX_JOBS, else one a core as far as the memory goes."""
    if asked and not (asked.isdigit() and int(asked) > 0):
        raise Fault(f'MAX_JOBS={asked} is no number of compilers. Cure: a whole number from 1, or leave it out')
    return int(asked) if asked else max(1, min(cores, memory // MEMORY_PER_JOB))


def build_environ(bin_directory: Path) -> dict[str, str]:
    """Variables for mmcv's build and torch's part of it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    environ = {
        **os.environ,
        # torch looks for ninja in PATH; without it the files are compiled one by one, and in silence
        'PATH': f'{bin_directory}{os.pathsep}{os.environ.get("PATH", "")}',
        'MAX_JOBS': str(build_jobs(cores, available_memory(), os.environ.get('MAX_JOBS'))),
        'MMCV_WITH_OPS': '1',
    }
    with contextlib.suppress(Fault):  # none is needed for a wheel that pip has kept
        environ['CXX'] = find_compiler(environ)
    return environ


def operators_fault(environment) -> str | None:
    try:
        environment.ask('operators')
    except Fault as fault:
        return str(fault)
    return None


def install_mmcv(environment, mmcv: Distribution, *options: str) -> str:
    """Without build isolation: an isolated build sees no torch and makes an mmcv without operators, in silence."""
    environ = build_environ(environment.python.parent)
    arguments = ('-v', '--no-build-isolation', '--no-deps', '--force-reinstall', *options, mmcv.requirement)
    command = environment.pip_install(*arguments)
    return run_step(f'{mmcv.name} {mmcv.version} with its operators', command, environment.log, build_status, environ)


def install_or_build(environment, mmcv: Distribution) -> None:
    """From pip's cache, else by a build; when the cached one does not work, by a build as well."""
    if not cached_wheel(environment, mmcv):
        require_compiler(environment.info)
        print("setup: building mmcv's operators: 6 to 13 minutes on two cores, once, for pip keeps them", flush=True)
    output = install_mmcv(environment, mmcv)
    fault = operators_fault(environment)
    if fault and not any(map(parse_build_step, output.splitlines())):
        # pip keeps a wheel under its source alone: it may be for another torch, or have no operators
        reason = fault.split(' Cure:')[0]
        print(f'setup: the mmcv that pip had kept does not fit, so it is built anew: {reason}', flush=True)
        require_compiler(environment.info)
        install_mmcv(environment, mmcv, '--no-cache-dir')
        fault = operators_fault(environment)
    if fault:
        raise Fault(f'{fault} (output of the build: {environment.log})')


def provide_mmcv(environment, mmcv: Distribution) -> None:
    """Keep an mmcv whose operators work, else install it; never put it over a distribution of another name."""
    names = environment.info['providers']['mmcv']
    fault = operators_fault(environment) if names else 'none installed'
    if fault and names and mmcv.name not in names:
        raise Fault(f'{", ".join(names)}: {fault}')
    if fault:
        install_or_build(environment, mmcv)
