"""``mmdet-diffusion animate``: from a picture file to an animation or panels."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmdet_diffusion import config_path
from mmdet_diffusion.testing import build_detector, load_tool

SHAPES = config_path('diffusiondet_r18_fpn_1xb4-4k_shapes')
animate = load_tool('visualizations/animate.py')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('animate')
    model = build_detector(Config.fromfile(SHAPES).model)
    for stage in model.bbox_head.stages:  # untrained ones move nothing
        torch.nn.init.normal_(stage.fc_reg.weight, std=0.05)
    torch.save(dict(state_dict=model.state_dict()), folder / 'model.pth')
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / 'picture.png')
    (folder / 'broken.png').write_bytes(b'no picture')
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


DIAL = ('--boxes', '12', '--steps', '2', '--size', '64', '--device', 'cpu')


def test_a_seed_gives_the_same_bytes_and_another_one_others():
    made = []
    for seed in ('0', '0', '1'):
        assert animate.main([SHAPES, 'model.pth', 'picture.png', '--out', 'way.webp', '--seed', seed, *DIAL]) == 0
        made.append(Path('way.webp').read_bytes())
    assert made[0] == made[1]
    assert made[0] != made[2]
    with Image.open('way.webp') as image:
        assert max(image.size) == 64 and image.n_frames > 10


def test_panels_are_those_of_steps_and_stages(capsys):
    assert animate.main([SHAPES, 'model.pth', 'picture.png', '--out', 'way.png', *DIAL]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith('way.png: 0 of 12 boxes end above 0.4')
    with Image.open('way.png') as image:
        assert image.width > 4 * 64 and image.height > 2 * 43
    assert not [name for name in os.listdir('.') if name.startswith('.')]


@pytest.mark.parametrize(('args', 'boxes'), [
    ([], 9),
    (['--boxes', '12'], 12)])
def test_cfg_options_count_where_the_arguments_say_nothing(capsys, args, boxes):
    options = ['--cfg-options', 'model.test_cfg.num_proposals=9', 'model.test_cfg.sampling_timesteps=1']
    command = [SHAPES, 'model.pth', 'picture.png', '--out', 'way.png', '--size', '64', '--device', 'cpu']
    assert animate.main([*command, *args, *options]) == 0
    assert f' of {boxes} boxes end' in capsys.readouterr().out
    with Image.open('way.png') as image:
        assert image.height < 2 * 64  # a row, of the one step


@pytest.mark.parametrize(('args', 'refusal'), [
    (['none.pth', 'picture.png'], '^there is no checkpoint none.pth$'),
    (['model.pth', 'none.png'], '^there is no picture none.png$'),
    (['model.pth', 'broken.png', *DIAL], '^broken.png cannot be used as a picture'),
    (['model.pth', 'picture.png', '--out', 'none/way.webp'], '^--out none/way.webp: the folder is not there'),
    (['model.pth', 'picture.png', *DIAL, '--steps', '1001'], '1001'),
    (['model.pth', 'picture.png', *DIAL, '--max-mib', '0.00001'], 'at the lowest quality; allow more')])
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(args, refusal):
    before = {name: os.path.getmtime(name) for name in os.listdir('.')}
    with pytest.raises(SystemExit, match=refusal) as ended:
        animate.main([SHAPES, *args])
    assert '\n' not in str(ended.value)
    assert {name: os.path.getmtime(name) for name in os.listdir('.')} == before


@pytest.mark.parametrize(('args', 'refusal'), [
    (['--out', 'way.mp4'], '--out must end in .webp, .gif, .png, got way.mp4'),
    (['--boxes', '0'], '--boxes must be at least 1, got 0'), (['--size', '5'], '--size must be at least 16, got 5'),
    (['--max-mib', 'nan'], '--max-mib must be above 0, got nan')])
def test_options_out_of_range_are_refused_without_torch(args, refusal, capsys):
    with pytest.raises(SystemExit):
        animate.parse_args([SHAPES, 'model.pth', 'picture.png', *args])
    assert refusal in capsys.readouterr().err
