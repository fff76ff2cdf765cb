"""How far a training has come, as the head asks for it."""

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from mmdet_diffusion.heads.training_progress import training_progress
from mmdet_diffusion.task_modules import DiffusionBoxSampler
from mmdet_diffusion.testing import build_detector, data_sample, random_boxes, small_model_cfg

SHAPE = (64, 96)


class Noting(BaseModel):
    """Notes the progress at each of its steps."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def forward(self, value, mode='loss'):
        self.seen.append(training_progress())
        return dict(loss=self.layer(value).sum())


def train(folder, train_cfg, **kwargs):
    model = Noting()
    loader = dict(dataset=[torch.ones(1)] * 4, batch_size=2, num_workers=0,
                  sampler=dict(type='DefaultSampler', shuffle=False),
                  collate_fn=lambda batch: dict(value=torch.stack(batch)))
    Runner(model, str(folder), train_dataloader=loader, train_cfg=train_cfg,
           optim_wrapper=OptimWrapper(torch.optim.SGD(model.parameters(), 0.0)),
           default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False)),
           experiment_name=f'progress_{folder.name}', **kwargs).train()
    return model.seen


@pytest.fixture
def own_hub(monkeypatch):
    """As in a process that has run no training."""
    monkeypatch.setattr(MessageHub, '_instance_dict', type(MessageHub._instance_dict)())


def test_without_a_runner_nothing_says_how_far_it_is(own_hub):
    assert training_progress() is None


def test_a_training_that_is_over_says_nothing_of_the_next(tmp_path, own_hub):
    train(tmp_path, dict(by_epoch=False, max_iters=2))
    assert training_progress() is None


@pytest.mark.parametrize('train_cfg', [dict(by_epoch=True, max_epochs=3), dict(by_epoch=False, max_iters=6)])
def test_it_is_the_share_of_the_iterations_that_are_done(tmp_path, own_hub, train_cfg):
    assert train(tmp_path, train_cfg) == [step / 6 for step in range(6)]


def test_a_training_that_goes_on_is_where_it_was(tmp_path, own_hub):
    train(tmp_path, dict(by_epoch=False, max_iters=4))
    seen = train(tmp_path, dict(by_epoch=False, max_iters=4), load_from=str(tmp_path / 'iter_2.pth'), resume=True)
    assert seen == [2 / 4, 3 / 4]


def test_the_head_hands_it_to_the_box_sampler(own_hub, monkeypatch):
    given, noisy_boxes = [], DiffusionBoxSampler.noisy_boxes

    def noting(self, objects, draws, progress):
        given.append(progress)
        return noisy_boxes(self, objects, draws, progress)

    monkeypatch.setattr(DiffusionBoxSampler, 'noisy_boxes', noting)
    hub = MessageHub.get_current_instance()
    hub.update_info('loop_stage', 'train')
    hub.update_info('max_iters', 8)
    hub.update_info('iter', 2)
    model_cfg = small_model_cfg()
    model_cfg.bbox_head.box_sampler.jitter = dict(type='ObjectJitter')
    sample = data_sample(random_boxes(3, SHAPE, torch.Generator().manual_seed(0)), torch.arange(3), SHAPE)
    losses = build_detector(model_cfg).loss(torch.rand(1, 3, *SHAPE), [sample])
    assert given == [0.25] and all(value.isfinite() for value in losses.values())
