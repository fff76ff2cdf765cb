"""``mmdet-diffusion web``."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
import torch
from made_pictures import picture
from mmengine.config import Config

from mmdet_diffusion.testing import REPOSITORY, build_detector, load_tool

web = load_tool('web.py')
SHAPES = 'diffusiondet_r18_fpn_1xb4-4k_shapes'


def test_it_serves_until_ctrl_c(checkpoint, tmp_path):
    for name in ('b.png', 'a.png'):
        (tmp_path / name).write_bytes(picture())
    command = [sys.executable, str(REPOSITORY / 'tools/web.py'), SHAPES, str(checkpoint), '--port', '0', '--device',
               'cpu', '--examples', str(tmp_path)]
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    # Whoever runs the tests in the background has them ignore Ctrl-C, and what they start too.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as program:
        try:
            line = next(line for line in program.stdout if line.startswith('The page is at '))
            address = line.split()[4].rstrip('.')
            with urllib.request.urlopen(f'{address}/model', timeout=30) as answer:
                assert json.load(answer)['examples'] == ['a.png', 'b.png']
            program.send_signal(signal.SIGINT)
            assert program.wait(60) == 0
        finally:
            program.kill()  # where it has not ended


def test_the_test_set_s_pictures_are_the_examples(config, tmp_path):
    (tmp_path / 'val').mkdir()
    for number in range(9):
        (tmp_path / 'val' / f'{number}.png').write_bytes(b'')
    config = config.copy()
    config.test_dataloader = dict(dataset=dict(data_root=str(tmp_path), data_prefix=dict(img='val/')))
    assert [path.name for path in web.examples_of(config)] == [f'{number}.png' for number in range(6)]
    config.test_dataloader = dict(dataset=dict(data_root=str(tmp_path), data_prefix=dict(img='none/')))
    assert web.examples_of(config) == []


def test_a_taken_port_is_said_before_a_model_is_loaded(checkpoint):
    with socket.create_server(('127.0.0.1', 0)) as taken, pytest.raises(SystemExit, match='--port 0 takes a free one'):
        web.main([SHAPES, str(checkpoint), '--port', str(taken.getsockname()[1])])


@pytest.mark.parametrize(('args', 'refusal'), [
    (['none.pth'], '^there is no checkpoint none.pth$'),
    (['MODEL', '--examples', 'none.png'], '^--examples none.png: '),
    (['MODEL', '--host', 'no host', '--port', '0'], '^cannot listen on no host, port 0'),
    (['MODEL', '--port', '0', '--cfg-options', 'model.test_cfg.sampling_timesteps=100'],
     '^sampling_timesteps may be at most 50 here, got 100$'),
    (['MODEL', '--port', '0', '--cfg-options', 'model.test_cfg.eta=3'], 'eta must be a number in 0..1, got 3')])
def test_what_is_wrong_is_said_in_one_line(args, refusal, checkpoint):
    with pytest.raises(SystemExit, match=refusal) as ended:
        web.main([SHAPES, *(str(checkpoint) if arg == 'MODEL' else arg for arg in args), '--device', 'cpu'])
    assert '\n' not in str(ended.value)


def test_a_detector_without_a_dial_is_refused(tmp_path):
    config = tmp_path / 'retina.py'
    config.write_text(f"_base_ = ['{REPOSITORY}/configs/benchmark/retinanet_efficientnet-lite0_fpn_1xb4_bccd.py']\n"
                      "model = dict(backbone=dict(init_cfg=None))\n")
    torch.save(dict(state_dict=build_detector(Config.fromfile(config).model).state_dict()), tmp_path / 'retina.pth')
    with pytest.raises(SystemExit, match='is a RetinaNet, not a DiffusionDet: it has no dial'):
        web.main([str(config), str(tmp_path / 'retina.pth'), '--port', '0', '--device', 'cpu'])


@pytest.mark.parametrize(('args', 'refusal'), [
    (['--port', '70000'], '--port must lie in 0..65535, got 70000'),
    (['--pictures', '0'], '--pictures must be at least 1, got 0'),
    (['--score-thr', '2'], '--score-thr must lie in 0..1, got 2.0')])
def test_options_out_of_range_are_refused_without_torch(args, refusal, capsys):
    with pytest.raises(SystemExit):
        web.parse_args([SHAPES, 'model.pth', *args])
    assert refusal in capsys.readouterr().err
