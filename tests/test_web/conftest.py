"""A model with weights that move boxes, pictures, and the page of it on a free port."""

import threading

import pytest
import torch
from made_pictures import picture
from mmengine.config import Config

from mmdet_diffusion import config_path
from mmdet_diffusion.prediction import Predictor
from mmdet_diffusion.testing import build_detector
from mmdet_diffusion.web import PageServer, PictureDial


@pytest.fixture(scope='session')
def config():
    return Config.fromfile(config_path('diffusiondet_r18_fpn_1xb4-4k_shapes'))


@pytest.fixture(scope='session')
def checkpoint(config, tmp_path_factory):
    torch.manual_seed(0)
    model = build_detector(config.model)
    for stage in model.bbox_head.stages:  # untrained ones move nothing and are sure of nothing
        torch.nn.init.normal_(stage.fc_reg.weight, std=0.05)
        torch.nn.init.normal_(stage.fc_cls.weight, std=0.2)
        torch.nn.init.zeros_(stage.fc_cls.bias)
    path = tmp_path_factory.mktemp('web') / 'model.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


@pytest.fixture(scope='session')
def predictor(config, checkpoint):
    return Predictor(config, str(checkpoint), device='cpu', score_thr=0.0, dial=dict(num_proposals=20))


@pytest.fixture
def dial(predictor):
    return PictureDial(predictor, most_pictures=2)


@pytest.fixture
def server(dial, tmp_path):
    (tmp_path / 'example.png').write_bytes(picture(seed=5))
    with PageServer('127.0.0.1', 0) as server:
        server.dial, server.examples = dial, [tmp_path / 'example.png']
        server.about = dict(config='shapes', score_thr=0.3, **dial.about())
        thread = threading.Thread(target=server.serve_forever, args=(0.05, ))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
