"""Names in the documents exist: of the package, of settings, of files."""

import inspect
import re
from pkgutil import resolve_name

import pytest
from mmengine.config import Config

from mmdet_diffusion.heads import SamplingSettings
from mmdet_diffusion.testing import REPOSITORY, load_config

DOCS = REPOSITORY / 'docs'
PAPER_TO_CODE = (DOCS / 'paper_to_code.md').read_text()
PARITY = (DOCS / 'parity.md').read_text()
CODE_COLUMN = '\n'.join(row.split('|')[2] for row in re.findall(r'^\|.*\|.*\|$', PAPER_TO_CODE, flags=re.MULTILINE))
DOTTED = sorted(set(re.findall(r'`(\w+(?:\.\w+)+)`', CODE_COLUMN)))
OWNED = sorted(set(re.findall(r'`(\w+)` of `([\w.]+)`', CODE_COLUMN)))


def test_the_table_of_the_paper_is_found():
    assert len(DOTTED) > 30 and len(OWNED) >= 5


@pytest.mark.parametrize('name', DOTTED)
def test_a_name_beside_the_paper_exists(name):
    assert resolve_name(f'mmdet_diffusion.{name}') is not None


@pytest.mark.parametrize(('part', 'owner'), OWNED)
def test_an_argument_or_part_beside_the_paper_exists(part, owner):
    cls = resolve_name(f'mmdet_diffusion.{owner}')
    assert part in inspect.signature(cls).parameters or f'self.{part} =' in inspect.getsource(cls)


def test_every_name_beside_the_paper_is_looked_up():
    """Nothing in the code's column stands alone, where no test would see that it is gone."""
    alone = set(re.findall(r'`([^`]+)`', CODE_COLUMN)) - set(DOTTED) - {part for part, _ in OWNED}
    assert alone == {'x_start'}  # a name of tensors, not of a part


def test_settings_of_sampling_in_the_parity_page_exist():
    keys = set(re.findall(r'test_cfg\.(\w+)', PARITY))
    assert {'ensemble', 'eta', 'renewal_score_thr', 'seed'} <= keys <= set(SamplingSettings._fields)


@pytest.mark.parametrize('key', ['box_sampler.padding', 'backbone.norm_cfg.requires_grad', 'randomness.diff_rank_seed'])
def test_a_config_key_in_the_parity_page_exists(key):
    assert f'`{key}' in PARITY
    cfg = load_config('diffusiondet_r50_fpn_8xb2-450k_coco.py')
    places = [cfg, cfg.model, cfg.model.bbox_head]
    assert any(has_key(place, key) for place in places)


def has_key(cfg: Config, key: str) -> bool:
    for part in key.split('.'):
        if part not in cfg:
            return False
        cfg = cfg[part]
    return True


API = '\n'.join(path.read_text() for path in (DOCS / 'api').glob('*.md'))
PACKAGES = sorted(path.parent for package in ('mmdet_diffusion', 'diffusiondet_runtime', 'mmcv_stand_in')
                  for path in (REPOSITORY / package).rglob('__init__.py') if '__all__' in path.read_text())


@pytest.mark.parametrize('folder', PACKAGES, ids=lambda folder: str(folder.relative_to(REPOSITORY)))
def test_public_names_have_a_page_of_the_site(folder):
    name = '.'.join(folder.relative_to(REPOSITORY).parts)
    if name == 'mmdet_diffusion':  # gives its parts, and what config_zoo has
        name = 'mmdet_diffusion.config_zoo'
    assert f'.. automodule:: {name}\n' in API


def test_packages_with_public_names_are_found():
    assert len(PACKAGES) > 12


@pytest.mark.parametrize('path', sorted([*DOCS.glob('*.md'), *REPOSITORY.glob('*.md')]), ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path):
    for target in re.findall(r'\]\((?!https?:)([^)#]+)', path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_defaults_of_the_dial_are_those_of_the_page():
    text, = re.findall(r'```python\n(test_cfg=dict\(.*?)```', (DOCS / 'once_for_all.md').read_text(), flags=re.DOTALL)
    named = {}
    exec(text, named)
    settings = SamplingSettings.from_cfg({}, 77, 1000)._asdict()
    assert dict(named['test_cfg'], num_proposals=77) == settings and named['test_cfg']['num_proposals'] is None
