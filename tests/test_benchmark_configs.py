"""The detectors that are compared run, and differ in nothing but the detector."""

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.structures import InstanceData

from mmdet_diffusion import config_path
from mmdet_diffusion.evaluation.cost_card import num_flops
from mmdet_diffusion.testing import REPOSITORY, data_sample

FILES = sorted((REPOSITORY / 'configs' / 'benchmark').glob('*.py'))
AUGMENTED = [file for file in FILES if '-1.5k_' in file.stem]
BCCD = [file for file in FILES if file.stem.endswith('_bccd') and file not in AUGMENTED]
SHAPES = [file for file in FILES if file.stem.endswith('_shapes')]
SHAPE = (64, 96)


def names(file):
    return f"{file.stem.split('_')[0]}{'-augmented' * (file in AUGMENTED)}-{file.stem.split('_')[-1]}"


def small_batch():
    generator = torch.Generator().manual_seed(0)
    images = list(torch.randint(256, (2, 3, *SHAPE), dtype=torch.uint8, generator=generator))
    samples = [data_sample(torch.tensor([[5.0, 5, 40, 40], [50, 20, 80, 60]]), torch.tensor([0, 2]), SHAPE),
               data_sample(torch.tensor([[10.0, 10, 30, 30]]), torch.tensor([1]), SHAPE)]
    for sample in samples:
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return dict(inputs=images, data_samples=samples)


def test_there_are_the_detectors_of_the_comparison():
    others = {'deformable-detr', 'faster-rcnn', 'fcos', 'retinanet', 'sparse-rcnn'}
    compared = {f'{name}-{data}' for name in others for data in ('bccd', 'shapes')}
    augmented = {f'{name}-augmented-bccd' for name in ('faster-rcnn', 'fcos', 'retinanet')}
    ours = {'diffusiondet-bccd', 'diffusiondet-large-shapes'}
    assert sorted(map(names, FILES)) == sorted(ours | compared | augmented)


@pytest.mark.parametrize('file', FILES, ids=names)
def test_a_detector_learns_and_detects(file):
    register_all_modules(init_default_scope=True)
    cfg = Config.fromfile(file).model
    cfg.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(cfg).train()
    model.init_weights()  # Deformable DETR's level embedding is whatever lay in memory before
    batch = small_batch()
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite() and next(model.backbone.parameters()).grad.abs().sum() > 0
    with torch.no_grad():
        results = model.eval()(**model.data_preprocessor(batch), mode='predict')
    assert len(results) == 2
    number = 3 if file in BCCD + AUGMENTED else 6
    for sample in results:
        found = sample.pred_instances
        assert found.bboxes.isfinite().all() and ((found.labels >= 0) & (found.labels < number)).all()
    learnt = [parameter.requires_grad for parameter in model.parameters()]
    assert num_flops(model, {name: values[0] for name, values in batch.items()}) > 1e6
    assert [parameter.requires_grad for parameter in model.parameters()] == learnt


def assert_equal_but_for_the_detector(cfgs):
    first = cfgs[0]
    for cfg in cfgs:
        for part in ('neck', 'backbone', 'data_preprocessor'):
            assert dict(cfg['model'][part], num_outs=4) == dict(first['model'][part], num_outs=4), part
        for key in ('train_dataloader', 'val_dataloader', 'val_evaluator', 'train_cfg', 'param_scheduler'):
            assert cfg[key] == first[key], key


def test_on_bccd_all_have_the_same_trunk_data_schedule_and_evaluation():
    assert_equal_but_for_the_detector([Config.fromfile(file).to_dict() for file in BCCD])


@pytest.mark.parametrize('max_iters', [None, '30'])
def test_augmented_detectors_have_pictures_and_schedule_of_ours_and_are_the_plain_ones(monkeypatch, max_iters):
    if max_iters:
        monkeypatch.setenv('MAX_ITERS', max_iters)
    ours = Config.fromfile(config_path('diffusiondet_efficientnet-lite0_fpn_1xb4-1.5k_bccd')).to_dict()
    assert ours['train_cfg']['max_iters'] == int(max_iters or 1500)
    cfgs = [Config.fromfile(file).to_dict() for file in AUGMENTED]
    assert_equal_but_for_the_detector([ours, *cfgs])
    for file, cfg in zip(AUGMENTED, cfgs, strict=True):
        plain = Config.fromfile(str(file).replace('-1.5k', '')).to_dict()
        assert cfg['model'] == plain['model'] and cfg['optim_wrapper'] == plain['optim_wrapper']
        assert cfg['train_dataloader'] != plain['train_dataloader']


def test_on_shapes_all_have_those_of_the_demo():
    demo = Config.fromfile(config_path('diffusiondet_r18_fpn_1xb4-4k_shapes'))
    cfgs = [Config.fromfile(file) for file in SHAPES]
    assert_equal_but_for_the_detector([cfg.to_dict() for cfg in (demo, *cfgs)])
    assert all(cfg.optim_wrapper == demo.optim_wrapper for cfg in cfgs)


def test_the_rate_falls_to_zero_at_the_end_of_any_length(monkeypatch):
    for file, length in [(file, length) for file in (BCCD[0], SHAPES[0]) for length in (1, 2, 3, 6, 20, 500, 4000)]:
        monkeypatch.setenv('MAX_ITERS', str(length))
        cfg = Config.fromfile(file)
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        schedulers = [PARAM_SCHEDULERS.build(dict(scheduler, optimizer=optimizer)) for scheduler in cfg.param_scheduler]
        rates = []
        for _ in range(cfg.train_cfg.max_iters):
            rates.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step()
        assert max(rates) == pytest.approx(1, abs=1e-3)
        assert length < 20 or rates[-1] < 0.01
