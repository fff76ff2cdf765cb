"""What a wheel, a source distribution and an editable install carry; built offline from a copy of the clone."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ('LICENSE', 'MANIFEST.in', 'README.md', 'model-index.yml', 'pyproject.toml', 'requirements.txt', 'setup.py')
FOLDERS = ('configs', 'diffusiondet_runtime', 'mmcv_stand_in', 'mmdet_diffusion', 'mmdet_diffusion_cli', 'requirements',
           'tests', 'tools')
PACKAGES = ('diffusiondet_runtime', 'mmcv_stand_in', 'mmdet_diffusion', 'mmdet_diffusion_cli')
MIM = 'mmdet_diffusion/.mim'


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    """The files that packaging sees, as a fresh clone has them."""
    target = tmp_path_factory.mktemp('clone')
    for name in filter(lambda name: (ROOT / name).exists(), SOURCES):
        shutil.copy(ROOT / name, target)
    for name in FOLDERS:
        ignore = shutil.ignore_patterns('.mim', '__pycache__', 'data')
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    (target / 'tools' / '__pycache__').mkdir()
    (target / 'tools' / '__pycache__' / 'train.cpython-311.pyc').touch()
    return target


def build(clone: Path, what: str, target: Path) -> Path:
    """Call a hook of the build backend as pip does, where pkg_resources is gone as in setuptools 82."""
    code = (
        'import sys; sys.modules["pkg_resources"] = None; import setuptools.build_meta as backend; '
        f'print(backend.build_{what}({str(target)!r}))'
    )
    result = subprocess.run([sys.executable, '-c', code], cwd=clone, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return target / result.stdout.strip().splitlines()[-1]


@pytest.fixture(scope='module')
def wheel(clone, tmp_path_factory):
    with zipfile.ZipFile(build(clone, 'wheel', tmp_path_factory.mktemp('wheel'))) as archive:
        yield archive


def files_under(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob('*') if path.is_file() and path.suffix != '.pyc')
    return {path.relative_to(folder.parent).as_posix() for path in paths}


def wheel_content(archive: zipfile.ZipFile) -> set[str]:
    return {name for name in archive.namelist() if '.dist-info/' not in name}


def required(archive: zipfile.ZipFile, extra: str | None = None) -> dict[str, str]:
    """Bounds by name of what is always required, or of what an extra adds."""
    lines = [line.partition(';') for line in metadata(archive).get_all('Requires-Dist')]
    wanted = (line.strip() for line, _, marker in lines if marker.strip() == (f'extra == "{extra}"' if extra else ''))
    return {name.lower(): bounds for name, bounds in (re.match(r'([\w-]+)\s*(.*)', line).groups() for line in wanted)}


def metadata(archive: zipfile.ZipFile):
    name = next(name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
    return Parser().parsestr(archive.read(name).decode())


def test_wheel_holds_the_packages_and_mim_and_nothing_else(clone, wheel):
    mim = files_under(clone / 'configs') | files_under(clone / 'tools') | {'model-index.yml', 'requirements.txt'}
    assert {'configs/diffusiondet/metafile.yml', 'tools/misc/setup_environment.py'} <= mim
    modules = set().union(*(files_under(clone / package) for package in PACKAGES))
    assert wheel_content(wheel) == modules | {f'{MIM}/{name}' for name in mim} | {'mmcv_stand_in.pth'}


def test_the_check_of_an_environment_runs_from_a_wheel(wheel, tmp_path):
    """It reads what the package supports from beside itself, where there is no clone."""
    wheel.extractall(tmp_path)
    program = tmp_path / MIM / 'tools' / 'misc' / 'check_environment.py'
    requirements = runpy.run_path(str(program))['read_requirements']()
    assert requirements['mmdet'] == '>=3.3.0,<3.4.0' and 'torch' in requirements
    environ = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    result = subprocess.run([sys.executable, program], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.search(r'torch .*, operators: (compiled|stand-in)$', result.stdout.strip())


def test_building_leaves_no_copies_in_the_clone(clone, wheel):
    assert not (clone / 'build').exists()
    assert not (clone / MIM).exists()


def test_version_is_the_one_in_version_py_everywhere(wheel):
    text = (ROOT / 'mmdet_diffusion' / 'version.py').read_text()
    version = re.search(r"__version__ = '(.+)'", text)[1]
    headings = dict(re.findall(r'^## \[(.+)\] - (\S+)$', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE))
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert metadata(wheel)['Version'] == version
    assert (citation['version'], citation['date-released']) == (version, headings[version])


def test_no_distribution_of_openmmlab_is_required_outside_the_extra(wheel):
    plain = set(required(wheel))
    assert {'torch', 'pycocotools', 'lvis'} <= plain
    assert not any('mm' in name for name in plain)


@pytest.mark.parametrize(('extra', 'names'), [
    ('openmmlab', {'mmengine', 'mmcv', 'mmdet'}),
    ('lite', {'mmengine', 'mmcv-lite', 'mmdet'}),
    ('onedl', {'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'}),
])
def test_an_extra_brings_one_stack_within_bounds(wheel, extra, names):
    brought = required(wheel, extra)
    assert set(brought) == names
    assert all(set(re.findall('[<>]=?', bounds)) == {'>=', '<'} for bounds in brought.values())


def test_ranges_of_extras_hold_what_was_tested(wheel):
    lines = (ROOT / 'requirements' / 'lock-onedl.txt').read_text().splitlines()
    lock = dict(line.split('==') for line in lines if line.startswith('onedl-'))
    assert len(lock) == 3
    assert required(wheel, 'lite')['mmcv-lite'] == required(wheel, 'openmmlab')['mmcv'] == '<2.2.0,>=2.1.0'
    assert all(version in SpecifierSet(required(wheel, 'onedl')[name]) for name, version in lock.items())
    assert '3.0.0' not in SpecifierSet(required(wheel, 'onedl')['onedl-mmcv'])


def test_the_command_is_installed(wheel):
    name = next(name for name in wheel.namelist() if name.endswith('.dist-info/entry_points.txt'))
    assert 'mmdet-diffusion = mmdet_diffusion_cli:main' in wheel.read(name).decode()


def test_wheel_says_apache_and_carries_the_text(wheel):
    assert metadata(wheel)['License'] == 'Apache-2.0' or metadata(wheel)['License-Expression'] == 'Apache-2.0'
    text = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith('LICENSE'))
    assert 'Apache License' in text and 'The mmdet_diffusion authors' in text


def test_wheel_from_the_source_distribution_is_the_same(clone, wheel, tmp_path):
    with tarfile.open(build(clone, 'sdist', tmp_path)) as archive:
        archive.extractall(tmp_path, filter='data')
    unpacked = next(path for path in tmp_path.iterdir() if path.is_dir())
    (tmp_path / 'wheel').mkdir()
    with zipfile.ZipFile(build(unpacked, 'wheel', tmp_path / 'wheel')) as again:
        assert wheel_content(again) == wheel_content(wheel)


def test_editable_install_links_to_the_clone_and_a_later_wheel_is_the_same(clone, wheel, tmp_path):
    work = tmp_path / 'clone'
    shutil.copytree(clone, work)
    for folder in ('first', 'second'):  # the second install finds the links of the first
        (tmp_path / folder).mkdir()
        build(work, 'editable', tmp_path / folder)
    for name in ('configs', 'tools', 'model-index.yml', 'requirements.txt'):
        place = work / MIM / name
        assert place.is_symlink() and not os.path.isabs(os.readlink(place))
        assert place.resolve() == (work / name).resolve()
    (tmp_path / 'wheel').mkdir()
    with zipfile.ZipFile(build(work, 'wheel', tmp_path / 'wheel')) as again:
        assert wheel_content(again) == wheel_content(wheel)


def find_config(package):
    """Path that a package at some place gives for a name, without importing all of it."""
    return Path(runpy.run_path(str(package / 'config_zoo.py'))['config_path']('diffusiondet_r50_fpn_8xb2-450k_coco'))


def test_a_config_is_found_by_name_in_a_wheel_a_clone_and_an_editable_install(clone, wheel, tmp_path):
    wheel.extractall(tmp_path / 'site-packages')
    installed = tmp_path / 'site-packages' / 'mmdet_diffusion'
    assert find_config(installed).parent == installed / '.mim' / 'configs' / 'diffusiondet'
    work = tmp_path / 'clone'
    shutil.copytree(clone, work)
    assert find_config(work / 'mmdet_diffusion').parent == work / 'configs' / 'diffusiondet'
    (tmp_path / 'editable').mkdir()
    build(work, 'editable', tmp_path / 'editable')
    assert find_config(work / 'mmdet_diffusion').parent == work / 'configs' / 'diffusiondet'


def test_module_that_is_gone_from_the_clone_is_gone_from_the_next_wheel(clone, tmp_path):
    work = tmp_path / 'clone'
    shutil.copytree(clone, work)
    (work / 'mmdet_diffusion' / 'gone.py').touch()
    for folder, expected in (('before', True), ('after', False)):
        (tmp_path / folder).mkdir()
        with zipfile.ZipFile(build(work, 'wheel', tmp_path / folder)) as archive:
            assert ('mmdet_diffusion/gone.py' in archive.namelist()) is expected
        (work / 'mmdet_diffusion' / 'gone.py').unlink(missing_ok=True)


def test_model_index_leads_to_configs_that_are_there():
    for imported in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']:
        index = yaml.safe_load((ROOT / imported).read_text())
        collections = {collection['Name'] for collection in index['Collections']}
        for model in index['Models']:
            assert model['In Collection'] in collections
            assert (ROOT / model['Config']).is_file(), model['Config']
            assert Path(model['Config']).stem == model['Name']
