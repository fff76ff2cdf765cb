"""Packaging. The wheel carries configs, tools and what belongs to them in mmdet_diffusion/.mim, where mim looks."""

import atexit
import os
import re
import runpy
import shutil
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = 'mmdet_diffusion'
CLI = 'mmdet_diffusion_cli'  # a package of its own, so that the command line answers without importing torch
RUNTIME = 'diffusiondet_runtime'  # of exported detectors; imports neither torch nor any of the others
PACKAGES = (PACKAGE, 'mmcv_stand_in', CLI, RUNTIME)
MIM_CONTENT = ('configs', 'tools', 'model-index.yml', 'requirements.txt')
OPENMMLAB = ('mmengine', 'mmcv', 'mmdet')


class BuildInTemporaryDirectory(build):
    """A build/ in the clone would hold copies of old files, and the next wheel would carry them."""

    def initialize_options(self):
        super().initialize_options()
        self.build_base = tempfile.mkdtemp(prefix=f'{PACKAGE}-build-')
        atexit.register(shutil.rmtree, self.build_base, ignore_errors=True)


class BuildWithMim(build_py):
    """Adds .mim: copies in a wheel, with the path file of the stand-ins; in an editable install links beside the
    modules, so that edits take effect."""

    def run(self):
        super().run()
        if self.editable_mode:
            self.fill_mim(ROOT / PACKAGE / '.mim', link)
        else:
            self.fill_mim(Path(self.build_lib) / PACKAGE / '.mim', copy)
            # Python runs it at every start, so that any program finds the stand-ins of mmcv's operators.
            (Path(self.build_lib) / 'mmcv_stand_in.pth').write_text('import mmcv_stand_in.at_start\n')

    def fill_mim(self, mim, place):
        mim.mkdir(parents=True, exist_ok=True)
        for name in MIM_CONTENT:
            place(ROOT / name, mim / name)


def link(source, target):
    if target.is_symlink():
        target.unlink()
    try:
        target.symlink_to(os.path.relpath(source, target.parent))
    except OSError:  # Windows asks for rights
        copy(source, target)


def copy(source, target):
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__', '*.pyc'), dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def requirements():
    """Lines of requirements.txt as (what pip is to install, what only extras name).

    The maintained forks of mmengine, mmcv and mmdet have other distribution names and the same modules: were the stock
    names required here, pip would install those over a fork.
    """
    lines = requirement_lines('requirements.txt')
    stock = [line for line in lines if re.match(r'[\w-]+', line).group() in OPENMMLAB]
    return [line for line in lines if line not in stock], stock


def requirement_lines(path):
    """What a requirements file asks for, without comments."""
    lines = (line.split('#')[0].strip() for line in (ROOT / path).read_text().splitlines())
    return [line for line in lines if line]


def extras(stock):
    """Whose mmengine, mmcv and mmdet to bring: one of these extras, or none and what is there stays.

    ``openmmlab`` and ``onedl`` leave the compiled operators to the user, who gives pip a wheel of mmcv
    (docs/operators.md): it builds mmcv where it sees no torch, and so without them. ``lite`` takes the mmcv that has
    none. ``export`` brings what writing and running ONNX files takes, ``openvino`` the other engine.
    """
    lite = [re.sub(r'^mmcv\b', 'mmcv-lite', line) for line in stock]
    forks = [line for line in requirement_lines('requirements/lock-onedl.txt') if line.startswith('onedl-')]
    return {'openmmlab': stock, 'lite': lite, 'onedl': [up_to_next_minor(line) for line in forks],
            'export': ['onnx>=1.16', 'onnxruntime>=1.27'], 'openvino': ['openvino>=2025.0']}


def up_to_next_minor(pin):
    """'name==2.3.6' -> 'name>=2.3.6,<2.4'."""
    name, version = pin.split('==')
    major, minor = map(int, version.split('.')[:2])
    return f'{name}>={version},<{major}.{minor + 1}'


install_requires, openmmlab = requirements()

setup(
    name=PACKAGE,
    version=runpy.run_path(str(ROOT / PACKAGE / 'version.py'))['__version__'],
    description='DiffusionDet (arXiv 2211.09788) for MMDetection: detection as denoising, from random boxes to objects',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8') if (ROOT / 'README.md').exists() else '',
    long_description_content_type='text/markdown',
    author='The mmdet_diffusion authors',
    license='Apache-2.0',
    keywords=['object detection', 'diffusion models', 'mmdetection', 'pytorch'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    package_data={PACKAGE: ['web/*.html']},
    packages=find_packages(include=[name for package in PACKAGES for name in (package, f'{package}.*')]),
    python_requires='>=3.10',  # the oldest that the tests ran on (requirements/lock-oldest.txt)
    install_requires=install_requires,
    extras_require=extras(openmmlab),
    entry_points={'console_scripts': [f'mmdet-diffusion = {CLI}:main']},
    cmdclass={'build': BuildInTemporaryDirectory, 'build_py': BuildWithMim},
    zip_safe=False,
)
