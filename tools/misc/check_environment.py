#!/usr/bin/env python3
"""Say whether an environment can run mmdet_diffusion: the first fault, with its cure, in one line.

Run it with the environment's own Python. ``--describe`` prints what is installed as JSON instead;
``setup_environment.py`` reads that. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON_VERSIONS = ((3, 11), (3, 12))  # what the versions in requirements/lock.txt can be installed on
OPENMMLAB = ('mmengine', 'mmcv', 'mmdet')
OWN_ENVIRONMENT = 'make setup without VENV= and PYTHON= for an environment of its own'


class Fault(Exception):
    """What is wrong and its cure, in words for the user."""


def version_numbers(version: str) -> tuple[int, ...]:
    """'2.13.0+cpu' -> (2, 13, 0). A pre-release counts as the release, which an upper bound means to exclude too."""
    return tuple(int(number) for number in re.match(r'\d+(?:\.\d+)*', version).group().split('.'))


def satisfies(version: str, specifier: str) -> bool:
    """Whether ``version`` lies in a range such as '>=2.1.0,<2.2.0'."""
    for operator, bound in re.findall(r'(==|>=|<)([\w.]+)', specifier):
        pair = [version_numbers(version), version_numbers(bound)]
        width = max(map(len, pair))
        have, limit = ((*numbers, *[0] * (width - len(numbers))) for numbers in pair)
        if not {'==': have == limit, '>=': have >= limit, '<': have < limit}[operator]:
            return False
    return True


def read_requirements(path: Path) -> dict[str, str]:
    """Requirement file -> {name: specifier}, comments dropped."""
    lines = (line.split('#')[0].strip() for line in path.read_text().splitlines())
    return dict(re.match(r'([\w.-]+)\s*(.*)', line).groups() for line in lines if line)


def supported(name: str) -> str:
    """The range of versions of ``name`` that the package supports, from requirements.txt."""
    return read_requirements(ROOT / 'requirements.txt')[name]


def canonical(name: str) -> str:
    """Distribution name as pip compares it."""
    return re.sub(r'[-_.]+', '-', name).lower()


def installed_versions() -> dict[str, str]:
    """Version of every installed distribution; of the same name twice on the path, the first one counts."""
    from importlib import metadata  # not at the top: Python 3.7 has none, and is to be told so by check_python_version

    versions: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata['Name']
        if name:  # a half-removed package has none
            versions.setdefault(canonical(name), distribution.version)
    return versions


def providers(module: str) -> list[str]:
    """Names of the distributions that bring ``module``: the maintained forks have other names than the module."""
    from importlib import metadata

    return sorted(set(map(canonical, metadata.packages_distributions().get(module, []))))


def describe() -> dict:
    """What setup_environment.py needs to know of this environment."""
    return {
        'python': '.'.join(map(str, sys.version_info[:3])),
        'prefix': sys.prefix,
        'include': sysconfig.get_path('include'),
        'versions': installed_versions(),
        'providers': {module: providers(module) for module in (*OPENMMLAB, 'torch', 'cv2')},
    }


def check_python_version(version: tuple[int, ...], executable: str) -> None:
    if version[:2] not in PYTHON_VERSIONS:
        wanted = ' or '.join('.'.join(map(str, pair)) for pair in PYTHON_VERSIONS)
        raise Fault(
            f'{executable} is Python {".".join(map(str, version[:3]))}; Python {wanted} is needed. '
            f'Cure: install one of them, then: make setup PYTHON=/path/to/python3.11'
        )


def check_openmmlab_version(module: str, versions: dict[str, str], names: list[str], where: str) -> None:
    """The stock distribution of ``module`` must be in range; a fork (another name) has versions of its own."""
    if 'mmcv-lite' in names:
        raise Fault(f'mmcv-lite in {where} has no operators. Cure: pip uninstall mmcv-lite there and make setup again')
    if module in names and not satisfies(versions[module], supported(module)):
        raise Fault(
            f'{module} {versions[module]} in {where} is not supported: {module}{supported(module)} is needed. '
            f'Cure: pip uninstall {module} there and make setup again, or {OWN_ENVIRONMENT}'
        )


def check_setuptools() -> None:
    if importlib.util.find_spec('pkg_resources') is None:
        raise Fault(
            f'setuptools {installed_versions().get("setuptools", "(none)")} in {sys.prefix} has no pkg_resources, '
            f"which mmcv's build and mmengine import. Cure: {sys.executable} -m pip install 'setuptools<82'"
        )


def check_torch() -> None:
    torch = import_or_fault('torch')
    if not satisfies(torch.__version__, supported('torch')):
        raise Fault(
            f'torch {torch.__version__} in {sys.prefix} is too old: torch{supported("torch")} is needed. '
            f'Cure: a newer one there, or {OWN_ENVIRONMENT}'
        )
    numpy = import_or_fault('numpy')
    try:
        torch.from_numpy(numpy.zeros(1))
    except RuntimeError:
        raise Fault(
            f'torch {torch.__version__} in {sys.prefix} was built for another numpy than {numpy.__version__}. '
            f"Cure: a torch of 2.3 or newer, or pip install 'numpy<2'"
        ) from None


def check_opencv() -> None:
    """pip's choice, opencv-python, which mmengine and lvis name, needs a library of the desktop; servers have none."""
    try:
        importlib.import_module('cv2')
    except Exception as error:
        raise Fault(
            f'OpenCV in {sys.prefix} cannot be imported ({one_line(error)}). Cure: pip uninstall -y opencv-python '
            f'opencv-python-headless && pip install opencv-python-headless, the same module that needs no libGL'
        ) from None


def check_operators() -> None:
    """mmcv imports and installs happily without its compiled operators, so run two of them, on every kind of device."""
    torch = import_or_fault('torch')
    try:
        ops = importlib.import_module('mmcv.ops')
        for device in ('cpu', 'cuda') if torch.cuda.is_available() else ('cpu',):
            boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.1]], device=device)
            kept = ops.nms(boxes, boxes.new_tensor([0.9, 0.8]), 0.5)[1].tolist()
            rois = torch.cat([boxes.new_zeros(1, 1), boxes[:1]], dim=1)
            pooled = ops.roi_align(boxes.new_ones(1, 1, 8, 8), rois, (2, 2)).unique().tolist()
            if (kept, pooled) != ([0], [1.0]):
                raise RuntimeError(f'nms kept {kept} for [0] and roi_align gave {pooled} for [1.0] on {device}')
    except Exception as error:  # whatever a library built for another torch may raise
        raise Fault(
            f'mmcv in {sys.prefix} has no working operators ({one_line(error)}). Cure: make setup builds them; '
            f'by hand, {operators_by_hand(providers("mmcv"))}'
        ) from None


def operators_by_hand(names: list[str]) -> str:
    """Commands that build the operators of the mmcv that is there: the stock one, or a fork under its own name."""
    fork = next((name for name in names if name not in ('mmcv', 'mmcv-lite')), None)
    return (
        f'pip uninstall {fork or "mmcv mmcv-lite"}, then '
        f"MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir '{fork or 'mmcv' + supported('mmcv')}'"
    )


def check_all() -> None:
    """Everything, in the order in which one part needs the other."""
    check_setuptools()
    check_torch()
    versions = installed_versions()
    for module in OPENMMLAB:
        check_openmmlab_version(module, versions, providers(module), sys.prefix)
    check_opencv()
    for module in ('mmengine', 'mmcv'):
        import_or_fault(module)
    check_operators()
    for module in ('mmdet', 'pycocotools.mask', 'lvis'):
        import_or_fault(module)


def import_or_fault(module: str):
    try:
        return importlib.import_module(module)
    except Exception as error:  # mmdet asserts its versions; a broken shared library is an ImportError or OSError
        raise Fault(
            f'{module} in {sys.prefix} cannot be imported ({one_line(error)}). '
            f'Cure: install it there anew, or {OWN_ENVIRONMENT}'
        ) from None


def one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0] if lines else ""}'


CHECKS = {
    'all': check_all,
    'setuptools': check_setuptools,
    'torch': check_torch,
    'opencv': check_opencv,
    'operators': check_operators,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--describe', action='store_true', help='print what is installed as JSON')
    parser.add_argument('what', nargs='?', choices=CHECKS, default='all', help='one part alone')
    args = parser.parse_args(argv)
    try:
        check_python_version(sys.version_info[:3], sys.executable)
        if args.describe:
            print(json.dumps(describe()))
        else:
            CHECKS[args.what]()
    except Fault as fault:
        print(fault, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
