"""The detectors that are compared run, and differ in nothing but the detector."""

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.structures import InstanceData

from mmdet_diffusion.testing import REPOSITORY, data_sample

FILES = sorted((REPOSITORY / 'configs' / 'benchmark').glob('*.py'))
SHAPE = (64, 96)


def names(file):
    return file.stem.split('_')[0]


def small_batch():
    generator = torch.Generator().manual_seed(0)
    images = list(torch.randint(256, (2, 3, *SHAPE), dtype=torch.uint8, generator=generator))
    samples = [data_sample(torch.tensor([[5.0, 5, 40, 40], [50, 20, 80, 60]]), torch.tensor([0, 2]), SHAPE),
               data_sample(torch.tensor([[10.0, 10, 30, 30]]), torch.tensor([1]), SHAPE)]
    for sample in samples:
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return dict(inputs=images, data_samples=samples)


def test_there_are_the_detectors_of_the_comparison():
    assert {names(file) for file in FILES} == {'diffusiondet', 'faster-rcnn', 'fcos', 'retinanet', 'sparse-rcnn'}


@pytest.mark.parametrize('file', FILES, ids=names)
def test_a_detector_learns_and_detects(file):
    register_all_modules(init_default_scope=True)
    cfg = Config.fromfile(file).model
    cfg.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(cfg).train()
    batch = small_batch()
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite() and model.backbone.layers[0].conv.weight.grad.abs().sum() > 0
    with torch.no_grad():
        results = model.eval()(**model.data_preprocessor(batch), mode='predict')
    assert len(results) == 2
    for sample in results:
        found = sample.pred_instances
        assert found.bboxes.isfinite().all() and ((found.labels >= 0) & (found.labels < 3)).all()


def test_all_have_the_same_trunk_data_schedule_and_evaluation():
    cfgs = [Config.fromfile(file).to_dict() for file in FILES]
    for cfg in cfgs:
        model = cfg['model']
        trunk = dict(model['neck'], num_outs=4), model['backbone'], model['data_preprocessor']
        first = cfgs[0]['model']
        assert trunk == (first['neck'], first['backbone'], first['data_preprocessor'])
        for key in ('train_dataloader', 'val_dataloader', 'val_evaluator', 'train_cfg', 'param_scheduler'):
            assert cfg[key] == cfgs[0][key], key


def test_the_rate_falls_to_zero_at_the_end_of_any_length(monkeypatch):
    for length in (20, 500, 1500):
        monkeypatch.setenv('MAX_ITERS', str(length))
        cfg = Config.fromfile(FILES[0])
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        schedulers = [PARAM_SCHEDULERS.build(dict(scheduler, optimizer=optimizer)) for scheduler in cfg.param_scheduler]
        rates = []
        for _ in range(cfg.train_cfg.max_iters):
            rates.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step()
        assert max(rates) == pytest.approx(1, abs=1e-3) and rates[-1] < 0.01
