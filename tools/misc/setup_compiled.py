"""mmcv with compiled operators, for ``make setup OPERATORS=compiled``: what its build needs, and the build."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from check_environment import Fault

BUILD_FAILURES = {
    r'Killed signal terminated program|\(program cc1plus\)': (
        'the compiler ran out of memory. Cure: make setup OPERATORS=compiled MAX_JOBS=1'
    ),
    r'CUDA_HOME environment variable is not set|detected CUDA version .* mismatches': (
        'this torch sees a GPU, but the CUDA compiler of its version is not here. Cure: install that CUDA toolkit and '
        'set CUDA_HOME, or hide the GPU to build for the CPU: CUDA_VISIBLE_DEVICES= make setup OPERATORS=compiled'
    ),
}


def find_compiler(environ: dict[str, str]) -> str:
    """The C++ compiler to build with."""
    for name in filter(None, (environ.get('CXX'), 'c++', 'g++', 'clang++')):
        if shutil.which(shlex.split(name)[0], path=environ.get('PATH', '')):
            return name
    raise Fault(
        'there is no C++ compiler (no $CXX, c++, g++ or clang++ in PATH). Cure: apt-get install g++, dnf install '
        'gcc-c++, xcode-select --install, name yours in CXX=, or make setup without OPERATORS=, which needs none'
    )


def require_compiler(environment) -> None:
    """Compile nothing but two includes: finds missing Python headers and a compiler that is there but broken."""
    compiler = find_compiler(dict(os.environ))
    ask = [environment.python, '-c', 'import sysconfig; print(sysconfig.get_path("include"))']
    include = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    command = [*shlex.split(compiler), '-fsyntax-only', '-std=c++17', '-I', include, '-x', 'c++', '-']
    source = '#include <Python.h>\n#include <vector>\n'
    result = subprocess.run(command, input=source, capture_output=True, text=True)
    if result.returncode and not (Path(include) / 'Python.h').exists():
        minor = '.'.join(environment.info['python'].split('.')[:2])
        raise Fault(
            f'Python.h is not in {include}: the headers of Python {minor} are missing. Cure: apt-get install '
            f'python{minor}-dev, dnf install python{minor}-devel, or a Python that has them in PYTHON='
        )
    if result.returncode:
        first = (result.stderr.strip().splitlines() or ['no message'])[0]
        raise Fault(f'{compiler} cannot compile a file of two lines ({first}). Cure: mend it, or name another in CXX=')


def fault_of_operators(environment) -> str | None:
    """None where the operators are compiled and work."""
    try:
        answer = environment.check()
    except Fault as fault:
        return str(fault)
    return None if answer.endswith('operators: compiled') else f'not compiled in {environment.path}: {answer}'


def provide_compiled_mmcv(environment, version: str) -> None:
    """Keep an mmcv whose operators work, else build it; never over a distribution of another name, a fork."""
    names = environment.info['providers']['mmcv']
    fault = fault_of_operators(environment) if names else 'none installed'
    if fault and not {'mmcv', 'mmcv-lite'} >= set(names):
        raise Fault(f'{", ".join(names)}: {fault}')
    if 'mmcv-lite' in names:  # the same files: taken away later, it would take those of mmcv
        environment.run('removing mmcv-lite', '-m', 'pip', 'uninstall', '--yes', 'mmcv-lite')
    # pip keeps a wheel under its source alone: it may be for another torch, or have no operators
    for options in ((), ('--no-cache-dir',)):
        output = build_mmcv(environment, version, *options) if fault else ''
        fault = fault and fault_of_operators(environment)
        if fault and 'Building wheel' in output:
            break
    if fault:
        raise Fault(f'{fault} (output of the build: {environment.log})')


def build_mmcv(environment, version: str, *options: str) -> str:
    """Without build isolation: an isolated build sees no torch and makes an mmcv without operators, in silence."""
    title = f'installing mmcv {version}, which pip kept or builds in 6 to 13 minutes on two cores ({environment.log})'
    arguments = ('-v', '--no-build-isolation', '--no-deps', '--force-reinstall', *options, f'mmcv=={version}')
    # torch looks for ninja in PATH; without it the files are compiled one by one
    path = os.pathsep.join([str(environment.python.parent), os.environ.get('PATH', '')])
    jobs = os.environ.get('MAX_JOBS') or str(os.cpu_count())
    variables = {'PATH': path, 'MMCV_WITH_OPS': '1', 'MAX_JOBS': jobs, 'CXX': find_compiler(dict(os.environ))}
    return environment.pip_install(title, *arguments, **variables)
