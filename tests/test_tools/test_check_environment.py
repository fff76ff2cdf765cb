"""The check of an environment: what it compares, what it says."""

import re
import subprocess
import sys

import pytest
from fake_environment import ROOT, check, environment, setup


@pytest.mark.parametrize(
    'version, specifier, expected',
    [
        ('2.1.0', '>=2.1.0,<2.2.0', True),
        ('2.1.9+cu121', '>=2.1.0,<2.2.0', True),
        ('2.2.0', '>=2.1.0,<2.2.0', False),
        ('2.2.0rc1', '>=2.1.0,<2.2.0', False),
        ('2.0.1', '>=2.1.0,<2.2.0', False),
        ('2.13.0+cpu', '>=2.3', True),  # by number: as text '2.13' < '2.3'
        ('2', '>=2.0.0', True),
        ('81.0.0', '==81', True),
    ],
)
def test_versions_are_compared_by_number(version, specifier, expected):
    assert check.satisfies(version, specifier) is expected


@pytest.mark.parametrize('version', [(3, 9, 18), (3, 13, 0), (2, 7, 18)])
def test_python_out_of_range_is_named_with_the_cure(version):
    with pytest.raises(check.Fault, match=rf'/some/python is Python {re.escape(".".join(map(str, version)))}.*Cure:'):
        check.check_python_version(version, '/some/python')


@pytest.mark.parametrize('version', [(3, 10, 13), (3, 11, 0), (3, 12, 9)])
def test_python_in_range_passes(version):
    check.check_python_version(version, '/some/python')


def test_the_running_environment_passes_its_own_check_and_says_whose_operators_it_has():
    script = str(ROOT / 'tools' / 'misc' / 'check_environment.py')
    result = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    import mmcv._ext as extension

    library = extension.__file__.endswith('.so')
    assert result.stdout.strip().endswith(f'operators: {"compiled" if library else "stand-in"}')
    assert f', half precision: {check.half_precision_here()}, ' in result.stdout


@pytest.mark.parametrize(
    'lacks, words', [((), 'float16 and bfloat16 (cpu)'), (['float16'], 'bfloat16 (cpu)'),
                     (['float16', 'bfloat16'], 'none known (cpu)')])
def test_it_says_which_types_of_half_precision_there_are(monkeypatch, lacks, words):
    import mmengine.device

    from mmdet_diffusion import half_precision

    monkeypatch.setattr(mmengine.device, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(
        half_precision, 'missing_support', lambda device, dtype: 'no' if str(dtype).split('.')[1] in lacks else None)
    assert check.half_precision_here() == words


@pytest.mark.parametrize(
    'versions, words',
    [
        ({'setuptools': '84.2.1'}, r"setuptools 84\.2\.1 in .*: setuptools<82 is needed.*pip install 'setuptools<82'"),
        ({'mmcv-lite': None}, r"mmcv-lite is missing .*pip install 'mmcv-lite>=2\.1\.0,<2\.2\.0'"),
        ({'torch': '2.0.1'}, r'torch 2\.0\.1 in .*: torch>=2\.1 is needed'),
    ],
)
def test_wrong_or_missing_version_is_one_line_with_the_cure(tmp_path, versions, words):
    lock = {**setup.read_lock('stand-in'), 'torch': '2.13.0', **versions}
    installed = {name: version for name, version in lock.items() if version}
    modules = {'mmengine': 'mmengine', 'mmcv': 'mmcv-lite', 'mmdet': 'mmdet'}
    names = {module: [name] for module, name in modules.items() if name in installed}
    with pytest.raises(check.Fault, match=words) as fault:
        check.check_versions(environment(tmp_path, installed, names).info)
    assert '\n' not in str(fault.value)


class FakeImports:
    """Modules whose import fails as ``failures`` says; the others are the real ones."""

    def __init__(self, monkeypatch, **failures):
        real = check.importlib.import_module
        failures = {name.replace('__', '.'): error for name, error in failures.items()}

        def import_module(name):
            if isinstance(failures.get(name), Exception):
                raise failures[name]
            return failures.get(name) or real(name)

        monkeypatch.setattr(check.importlib, 'import_module', import_module)


def fake_mmcv(tmp_path):
    module = type(sys)('mmcv')
    module.__file__ = str(tmp_path / '__init__.py')
    return module


def test_half_of_a_compiled_mmcv_is_named_with_the_cure(tmp_path, monkeypatch):
    (tmp_path / '_ext.cpython-311-x86_64-linux-gnu.so').touch()
    error = ImportError('_ext.so: undefined symbol: _ZN3c10\nsecond line')
    FakeImports(monkeypatch, mmcv=fake_mmcv(tmp_path), mmcv___ext=error)
    with pytest.raises(check.Fault) as fault:
        check.check_operators(environment(tmp_path, providers={'mmcv': ['onedl-mmcv']}).info)
    message = str(fault.value)
    assert '(_ext.cpython-311-x86_64-linux-gnu.so of another build; ImportError: _ext.so: undefined symbol' in message
    assert 'Cure: pip uninstall onedl-mmcv; pip cache remove onedl_mmcv;' in message and '\n' not in message


def test_mmcv_without_any_operators_is_one_line_with_the_cure(tmp_path, monkeypatch):
    error = ModuleNotFoundError("No module named 'mmcv._ext'")
    FakeImports(monkeypatch, mmcv=fake_mmcv(tmp_path), mmcv___ext=error)
    with pytest.raises(check.Fault, match="no working operators .none; .*'mmcv._ext'.*Cure: install this package"):
        check.check_operators(environment(tmp_path, providers={'mmcv': ['mmcv-lite']}).info)


def test_operators_that_give_wrong_numbers_are_a_fault(tmp_path, monkeypatch):
    import mmcv.ops

    monkeypatch.setattr(mmcv.ops, 'nms', lambda boxes, scores, threshold: (boxes, scores.new_tensor([0, 1]).long()))
    with pytest.raises(check.Fault, match=r'nms kept \[0, 1\] for \[0\]'):
        check.check_operators(environment(tmp_path).info)


def test_opencv_that_needs_a_missing_library_has_its_own_cure(monkeypatch):
    FakeImports(monkeypatch, cv2=ImportError('libGL.so.1: cannot open shared object file: No such file or directory'))
    with pytest.raises(check.Fault, match='cv2 in .*libGL.*Cure: .*pip install opencv-python-headless'):
        check.import_or_fault('cv2')
