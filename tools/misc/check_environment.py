#!/usr/bin/env python3
"""Say whether an environment can run mmdet_diffusion: what is in use, or the first fault with its cure, in one line.

Run it with the environment's own Python, from a clone or from an installed package (mmdet_diffusion/.mim/tools/misc).
``--describe`` prints what is installed as JSON instead, for setup_environment.py. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the clone, or .mim, which carries requirements.txt as well
PYTHON_VERSIONS = ((3, 10), (3, 11), (3, 12))
DISTRIBUTIONS = {  # of the modules that more than one brings, the maintained forks last
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv-lite', 'mmcv', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'cv2': ('opencv-python-headless', 'opencv-contrib-python-headless', 'opencv-python', 'opencv-contrib-python'),
}
OPENMMLAB = ('mmengine', 'mmcv', 'mmdet')
OWN_ENVIRONMENT = 'in a clone, make setup without VENV= and PYTHON= for an environment of its own'


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


def read_requirements(path: Path = ROOT / 'requirements.txt') -> dict[str, str]:
    """Requirement file -> {name: specifier}, comments dropped."""
    lines = (line.split('#')[0].strip() for line in path.read_text().splitlines())
    return dict(re.match(r'([\w.-]+)\s*(.*)', line).groups() for line in lines if line)


def canonical(name: str) -> str:
    """Distribution name as pip compares it."""
    return re.sub(r'[-_.]+', '-', name).lower()


def describe() -> dict:
    """What is installed; of the same name twice on the path, the first one counts."""
    from importlib import metadata  # not at the top: Python 3.7 has none, and is to be told so by check_python_version

    versions: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata['Name']
        if name:  # a half-removed package has none
            versions.setdefault(canonical(name), distribution.version)
    found = metadata.packages_distributions()
    providers = {module: sorted(set(map(canonical, found.get(module, [])))) for module in DISTRIBUTIONS}
    return {'python': '.'.join(map(str, sys.version_info[:3])), 'versions': versions, 'providers': providers}


def check_python_version(version: tuple[int, ...], executable: str) -> None:
    if version[:2] not in PYTHON_VERSIONS:
        wanted = ' or '.join('.'.join(map(str, pair)) for pair in PYTHON_VERSIONS)
        raise Fault(
            f'{executable} is Python {".".join(map(str, version[:3]))}; Python {wanted} is needed. '
            f'Cure: install one of them, then: make setup PYTHON=/path/to/python3.11'
        )


def check_version(name: str, version: str | None, specifier: str, where: str) -> None:
    if version is None or not satisfies(version, specifier):
        raise Fault(
            f'{name} {version or "is missing"} in {where}: {name}{specifier} is needed. '
            f"Cure: pip install '{name}{specifier}' there, or {OWN_ENVIRONMENT}"
        )


def check_openmmlab(info: dict, where: str) -> None:
    """One distribution at most brings each module, the stock one in the supported range; a fork has other versions."""
    supported = read_requirements()
    for module in OPENMMLAB:
        names = info['providers'][module]
        if len(names) > 1:
            raise Fault(
                f'{" and ".join(names)} in {where} both bring {module}, file over file. '
                f'Cure: pip uninstall {" ".join(names)} there, then install the one that you want'
            )
        if names and names[0] != DISTRIBUTIONS[module][-1]:
            check_version(names[0], info['versions'][names[0]], supported[module], where)


def check_versions(info: dict) -> None:
    check_openmmlab(info, sys.prefix)
    for name, specifier in read_requirements().items():
        if not info['providers'].get(name):
            name = DISTRIBUTIONS.get(name, (name,))[0]  # mmcv-lite for mmcv, which pip alone builds without operators
            check_version(name, info['versions'].get(name), specifier, sys.prefix)


def check_torch() -> None:
    torch, numpy = import_or_fault('torch'), import_or_fault('numpy')
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


def check_operators(info: dict) -> str:
    """'compiled' or 'stand-in': whose operators mmcv has, once two of them gave what they should on every device."""
    mmcv = import_or_fault('mmcv')
    if importlib.util.find_spec('mmcv_stand_in'):
        importlib.import_module('mmcv_stand_in').install()
    libraries = [*Path(mmcv.__file__).parent.glob('_ext*.so'), *Path(mmcv.__file__).parent.glob('_ext*.pyd')]
    try:
        extension = importlib.import_module('mmcv._ext')
        run_operators()
    except Exception as error:  # whatever a library built for another torch may raise
        names = ' '.join(info['providers']['mmcv'])
        cure = 'install this package there, which brings them in torch'
        if libraries:  # it hides the stand-in, and pip may have kept it
            cure = f'pip uninstall {names}; pip cache remove {names.replace("-", "_")}; pip install mmcv-lite==2.1.0'
        found = f'{libraries[0].name} of another build' if libraries else 'none'
        raise Fault(
            f'mmcv in {sys.prefix} has no working operators ({found}; {one_line(error)}). '
            f'Cure: {cure}, or {OWN_ENVIRONMENT}'
        ) from None
    return 'compiled' if getattr(extension, '__file__', None) in map(str, libraries) else 'stand-in'


def run_operators() -> None:
    torch, ops = importlib.import_module('torch'), importlib.import_module('mmcv.ops')
    for device in ('cpu', 'cuda') if torch.cuda.is_available() else ('cpu',):
        boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.1]], device=device)
        kept = ops.nms(boxes, boxes.new_tensor([0.9, 0.8]), 0.5)[1].tolist()
        rois = torch.cat([boxes.new_zeros(1, 1), boxes[:1]], dim=1)
        pooled = ops.roi_align(boxes.new_ones(1, 1, 8, 8), rois, (2, 2)).unique().tolist()
        if (kept, pooled) != ([0], [1.0]):
            raise RuntimeError(f'nms kept {kept} for [0] and roi_align gave {pooled} for [1.0] on {device}')


def check_all() -> str:
    """Everything, in the order in which one part needs the other; then what is in use."""
    info = describe()
    check_versions(info)
    check_torch()
    check_opencv()
    import_or_fault('mmengine')
    operators = check_operators(info)
    for module in ('mmdet', 'pycocotools.mask', 'lvis', 'mmdet_diffusion'):
        import_or_fault(module)
    names = ['torch', *(info['providers'][module][0] for module in OPENMMLAB)]
    versions = ', '.join(f'{name} {info["versions"][name]}' for name in names)
    return f'Python {info["python"]}, {versions}, half precision: {half_precision_here()}, operators: {operators}'


def half_precision_here() -> str:
    """The types for ``model.test_dtype`` on the device that a training would take, and that device."""
    torch, half = importlib.import_module('torch'), importlib.import_module('mmdet_diffusion.half_precision')
    device = torch.device(importlib.import_module('mmengine.device').get_device())
    names = [name for name, dtype in half.HALF_DTYPES.items() if half.missing_support(device, dtype) is None]
    return f'{" and ".join(names) or "none known"} ({device.type})'


def import_or_fault(module: str):
    try:
        return importlib.import_module(module)
    except Exception as error:  # mmdet asserts its versions; a broken shared library is an ImportError or OSError
        cure = f'install it there anew, or {OWN_ENVIRONMENT}'
        if 'libGL' in str(error):
            names = ' '.join(describe()['providers']['cv2'])
            cure = f'pip uninstall {names}; pip install opencv-python-headless, the same module; or install libGL'
        raise Fault(f'{module} in {sys.prefix} cannot be imported ({one_line(error)}). Cure: {cure}') from None


def one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0] if lines else ""}'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--describe', action='store_true', help='print what is installed as JSON')
    args = parser.parse_args(argv)
    try:
        check_python_version(sys.version_info[:3], sys.executable)
        print(json.dumps(describe()) if args.describe else check_all())
    except Fault as fault:
        print(fault, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
