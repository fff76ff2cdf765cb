"""Imports inside the package point one way."""

import ast
import re
import sys

import pytest

from mmdet_diffusion.testing import REPOSITORY

PACKAGE = REPOSITORY / 'mmdet_diffusion'
SHARED = {'structures', 'version', 'compat', 'annotation_categories', 'annotation_faults', 'number_checks'}
TASK = {'diffusion', 'ops', 'task_modules'}
PARTS = {'layers', 'roi_extractors', 'losses', 'post_processing', 'sampling_settings'}
MAY_IMPORT = dict(
    diffusion=set(), ops=set(), structures=set(), version=set(), compat={'version'}, task_modules={'diffusion', 'ops'},
    layers=TASK, roi_extractors=TASK, losses=TASK, sampling_settings={'diffusion'},
    post_processing=TASK | {'sampling_settings'}, heads=TASK | PARTS,
    detectors=TASK | PARTS | {'heads', 'half_precision'}, hooks=TASK | PARTS | {'heads', 'detectors', 'visualization'},
    testing={'structures'}, config_zoo=set(), host_memory=set(), installation=set(),
    input_checks={'hooks', 'half_precision'}, launch={'config_zoo', 'host_memory', 'input_checks'},
    prediction={'input_checks'}, command_line={'config_zoo', 'input_checks', 'launch', 'prediction'},
    whole_file=set(), visualization=TASK | {'whole_file'}, operator_count=set(), half_precision=set(),
    annotation_categories={'annotation_faults'}, annotation_faults=set(), number_checks=set(),
    object_sizes=set(), loops={'hooks'},
    backbones=set(), evaluation=TASK | PARTS | {'heads', 'detectors', 'input_checks', 'prediction', 'whole_file'},
    web=TASK | PARTS | {'detectors', 'prediction', 'visualization'},
    optim={'half_precision', 'ops'}, __main__=set(), deployment=TASK | PARTS | {'heads'},
    __init__={
        'backbones', 'config_zoo', 'installation', 'detectors', 'heads', 'hooks', 'loops', 'losses', 'optim',
        'roi_extractors', 'task_modules'
    })


def imported_modules(file):
    """Absolute dotted names of what a file of a package imports."""
    parents = list(file.relative_to(REPOSITORY).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = parents[:len(parents) + 1 - node.level] if node.level else []
            yield from ('.'.join([*package, *(node.module or '').split('.'), alias.name]).replace('..', '.')
                        for alias in node.names)


def part_of(file):
    return file.relative_to(PACKAGE).with_suffix('').parts[0]


FILES = sorted(PACKAGE.rglob('*.py'))


@pytest.mark.parametrize('file', FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_only_parts_below_its_own(file):
    own = part_of(file)
    assert own in MAY_IMPORT, f'give {own} its place in MAY_IMPORT'
    inside = {name.split('.')[1] for name in imported_modules(file) if name.startswith('mmdet_diffusion.')}
    wrong = inside - {own} - MAY_IMPORT[own] - (SHARED if own not in SHARED else set())
    assert not wrong, f'{own} must not import {sorted(wrong)}'


LIGHT = {name for folder in ('tools', 'mmdet_diffusion_cli') for file in (REPOSITORY / folder).rglob('*.py')
         for name in re.findall(r"light_module\('(\w+)'\)", file.read_text())}


@pytest.mark.parametrize('name', sorted(LIGHT))
def test_a_module_that_is_loaded_without_the_package_imports_none_of_it(name):
    imported = imported_modules(PACKAGE / f'{name}.py')
    inside = [module for module in imported if module.startswith('mmdet_diffusion.')]
    assert not inside, f'{name} is loaded by light_module, where the package is not there'


def test_light_modules_are_found():
    assert {'annotation_faults', 'config_zoo', 'object_sizes'} <= LIGHT


@pytest.mark.parametrize('file', [file for file in FILES if part_of(file) in ('diffusion', 'ops', 'structures')],
                         ids=lambda file: str(file.relative_to(PACKAGE)))
def test_arithmetic_imports_nothing_but_torch(file):
    outside = {name.split('.')[0] for name in imported_modules(file)} - {'mmdet_diffusion'}
    assert outside <= {'torch', *sys.stdlib_module_names}


@pytest.mark.parametrize('file', sorted((REPOSITORY / 'mmcv_stand_in').rglob('*.py')),
                         ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_the_stand_ins_need_nothing_but_torch_and_numpy(file):
    imported = {name.split('.')[0] for name in imported_modules(file)}
    assert imported <= {'mmcv_stand_in', 'numpy', 'torch', *sys.stdlib_module_names}


@pytest.mark.parametrize('file', sorted((REPOSITORY / 'diffusiondet_runtime').rglob('*.py')),
                         ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_the_run_time_of_exports_needs_nothing_but_numpy_and_pillow(file):
    """The engines, and OpenCV for videos, are imported by name, where they are asked for."""
    imported = {name.split('.')[0] for name in imported_modules(file)}
    assert imported <= {'diffusiondet_runtime', 'numpy', 'PIL', *sys.stdlib_module_names}


@pytest.mark.parametrize('name', ['__init__', 'finder', 'startup'])
def test_what_runs_at_every_start_of_python_imports_the_standard_library_alone(name):
    imported = {name.split('.')[0] for name in imported_modules(REPOSITORY / 'mmcv_stand_in' / f'{name}.py')}
    assert imported <= {'mmcv_stand_in', *sys.stdlib_module_names}


@pytest.mark.parametrize('file', sorted((REPOSITORY / 'tools').rglob('*.py')),
                         ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_a_program_makes_the_operators_available_before_it_imports_mmdet(file):
    """Without the path file that set-up and wheels put into an environment it would fail at its first import."""
    statements = [node for node in ast.parse(file.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [getattr(node, 'module', None) or node.names[0].name for node in statements]
    users = [index for index, name in enumerate(names) if name.startswith(('mmdet.', 'mmcv.'))]
    makers = [index for index, name in enumerate(names) if name.split('.')[0] in ('mmdet_diffusion', 'mmcv_stand_in')]
    assert not users or (makers and makers[0] < users[0])
