"""The model zoo's page and metafile agree with the configs, with each other, and claim no result as ours."""

import re

import pytest
import yaml

from mmdet_diffusion import list_configs
from mmdet_diffusion.testing import REPOSITORY

PAGE = (REPOSITORY / 'docs' / 'model_zoo.md').read_text()
ROWS = [[cell.strip() for cell in line.split('|')[1:-1]] for line in PAGE.splitlines() if line.startswith('| `')]
MODELS = yaml.safe_load((REPOSITORY / 'configs' / 'diffusiondet' / 'metafile.yml').read_text())['Models']
SOURCES = ('published with the released weights', 'published in the ICCV paper')


def published(model):
    """(source, steps) -> AP of a model of the metafile."""
    found = {}
    for result in model.get('Results', []):
        for key, value in result['Metrics'].items():
            source, steps = re.fullmatch(r'box AP (published .+), (\d) steps?', key).groups()
            found[source, int(steps)] = value
    return found


def test_page_and_metafile_have_every_config_once():
    names = sorted(path.stem for path in (REPOSITORY / 'configs' / 'diffusiondet').glob('*.py'))
    assert sorted(row[0].strip('`') for row in ROWS) == names
    assert sorted(model['Name'] for model in MODELS) == names


def test_every_result_in_the_metafile_says_who_published_it():
    keys = [key for model in MODELS for key in published(model)]
    assert len(keys) == 18
    assert {source for source, _ in keys} == set(SOURCES)
    assert not any('Weights' in model for model in MODELS)


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row[0].strip('`'))
def test_the_page_gives_the_figures_of_the_metafile(row):
    name, *cells = row
    model, = (model for model in MODELS if model['Name'] == name.strip('`'))
    on_page = {
        (source, steps): float(value) for source, cell in zip(SOURCES, cells, strict=False)
        for steps, value in zip((1, 4), re.findall(r'\d+\.\d', cell), strict=False)
    }
    assert on_page == published(model)


@pytest.mark.parametrize('command', sorted(set(re.findall(r'`(python tools/[^`]+)`', PAGE))))
def test_every_command_of_the_page_names_a_tool_and_a_config_that_are_there(command):
    words = command.split()
    assert (REPOSITORY / words[1]).is_file()
    configs = [word for word in words[2:] if word.removeprefix('configs/').startswith('diffusiondet')]
    assert len(configs) == 1
    if '/' in configs[0]:
        assert (REPOSITORY / configs[0]).is_file()
    else:
        assert configs[0] in list_configs()
