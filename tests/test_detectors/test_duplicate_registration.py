"""Two packages that both register a DiffusionDet."""

import subprocess
import sys

import pytest
from mmdet.registry import MODELS

import mmdet_diffusion
from mmdet_diffusion.compat import refuse_second_diffusiondet
from mmdet_diffusion.testing import REPOSITORY

OTHER = """
from mmdet.registry import MODELS

@MODELS.register_module()
class DiffusionDet:
    pass
"""
TWO_WAYS_TO_IMPORT = """
import sys
sys.path[:0] = sys.argv[1:]
import other_diffusiondet
from mmengine.utils import import_modules_from_strings

try:
    import mmdet_diffusion
except ImportError as error:
    print('import:', error)
try:
    import_modules_from_strings(imports=['mmdet_diffusion'], allow_failed_imports=False)
except ImportError as error:
    print('config:', error.__cause__ or error.__context__ or error)
"""


def test_importing_after_another_diffusiondet_raises_and_names_both(tmp_path):
    """By an import statement, and by custom_imports, which is where users meet it."""
    (tmp_path / 'other_diffusiondet.py').write_text(OTHER)
    done = subprocess.run([sys.executable, '-c', TWO_WAYS_TO_IMPORT, REPOSITORY, tmp_path], cwd=tmp_path,
                          capture_output=True, text=True, check=True)
    ways = dict(line.split(': ', 1) for line in done.stdout.splitlines())
    assert set(ways) == {'import', 'config'}
    for message in ways.values():
        assert 'already registered by other_diffusiondet' in message
        assert 'projects/DiffusionDet' in message and 'custom_imports' in message


def test_the_registry_refuses_another_diffusiondet_after_ours_and_names_ours():
    assert MODELS.get('DiffusionDet') is mmdet_diffusion.detectors.DiffusionDet
    with pytest.raises(KeyError, match='DiffusionDet is already registered.*mmdet_diffusion'):
        MODELS.register_module(module=type('DiffusionDet', (), {}))


def test_checking_again_when_ours_is_registered_is_fine():
    refuse_second_diffusiondet()


def test_the_message_names_the_module_of_the_other_class(monkeypatch):
    stranger = type('DiffusionDet', (), dict(__module__='projects.DiffusionDet.diffusiondet'))
    monkeypatch.setitem(MODELS.module_dict, 'DiffusionDet', stranger)
    with pytest.raises(ImportError, match='projects.DiffusionDet.diffusiondet'):
        refuse_second_diffusiondet()


def test_a_package_whose_name_begins_like_ours_is_another_one(monkeypatch):
    stranger = type('DiffusionDet', (), dict(__module__='mmdet_diffusion_two.detector'))
    monkeypatch.setitem(MODELS.module_dict, 'DiffusionDet', stranger)
    with pytest.raises(ImportError, match='mmdet_diffusion_two.detector'):
        refuse_second_diffusiondet()
