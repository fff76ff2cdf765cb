"""Several draws of noise for each image in one training step."""

from collections import Counter

import pytest
import torch

from mmdet_diffusion.structures import TrainingDraws
from mmdet_diffusion.task_modules import DiffusionBoxSampler, pad_objects, repeat_objects
from mmdet_diffusion.testing import build_detector, data_sample, random_boxes, small_model_cfg

SHAPE = (64, 96)


def grouped_detector(**train_cfg):
    return build_detector(small_model_cfg() | dict(train_cfg=train_cfg))


def make_feats(num_images):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn((num_images, 16, SHAPE[0] // stride, SHAPE[1] // stride), generator=generator)
                 for stride in (4, 8, 16, 32))


def make_samples(counts):
    return [data_sample(random_boxes(count, SHAPE, torch.Generator().manual_seed(index)),
                        torch.arange(count) % 3, SHAPE, img_id=index) for index, count in enumerate(counts)]


def timesteps_of(num_images, num_groups, seed=0):
    objects = repeat_objects(pad_objects(make_samples([2] * num_images), 3), num_groups)
    draws = DiffusionBoxSampler(num_train_timesteps=100).draw_training(
        objects, 5, torch.Generator().manual_seed(seed), num_groups)
    return draws.timesteps.view(num_images, num_groups)


@pytest.mark.parametrize('counts', [(2, 0, 14), (1, )])
def test_groups_give_the_losses_of_a_batch_with_each_image_that_often(counts, monkeypatch):
    head = grouped_detector(num_groups=3).bbox_head
    plain = grouped_detector().bbox_head
    drawn = []
    draw_training = DiffusionBoxSampler.draw_training

    def replayed(self, *args, **kwargs):
        if not drawn:
            drawn.append(draw_training(self, *args, **kwargs))
        return drawn[0]

    monkeypatch.setattr(DiffusionBoxSampler, 'draw_training', replayed)
    feats, samples = make_feats(len(counts)), make_samples(counts)
    losses = head.loss(feats, samples)
    repeated = plain.loss(tuple(level.repeat_interleave(3, 0) for level in feats),
                          [sample for sample in samples for _ in range(3)])
    assert isinstance(drawn[0], TrainingDraws) and len(drawn[0].noise) == 3 * len(counts)
    torch.testing.assert_close(losses, repeated)


@pytest.mark.parametrize('num_groups', [1, 3])
def test_the_network_sees_the_boxes_and_the_step_of_one_draw(num_groups, monkeypatch):
    head = grouped_detector(num_groups=num_groups).bbox_head
    drawn, seen = [], []
    draw_training, refine = DiffusionBoxSampler.draw_training, head._refine
    monkeypatch.setattr(DiffusionBoxSampler, 'draw_training',
                        lambda *args, **kwargs: drawn.append(draw_training(*args, **kwargs)) or drawn[-1])
    monkeypatch.setattr(head, '_refine',
                        lambda features, bboxes, t: seen.append((bboxes, t)) or refine(features, bboxes, t))
    samples = make_samples((2, 5, 1))
    head.loss(make_feats(3), samples)
    (draws, ), ((bboxes, t), ) = drawn, seen
    objects = repeat_objects(pad_objects(samples, 3), num_groups)
    assert len(set(t.tolist())) > 1 and torch.equal(t, draws.timesteps)
    assert torch.equal(bboxes, head.box_sampler.noisy_boxes(objects, draws))


def test_groups_of_an_image_have_noise_of_their_own():
    objects = repeat_objects(pad_objects(make_samples([2, 2]), 3), 2)
    noise = DiffusionBoxSampler().draw_training(objects, 5, num_groups=2).noise
    assert not any(torch.equal(noise[one], noise[other]) for one in range(4) for other in range(one))


def test_each_group_is_in_its_part_of_the_steps():
    steps = timesteps_of(200, 4)
    assert all(((steps[:, group] >= 25 * group) & (steps[:, group] < 25 * (group + 1))).all() for group in range(4))
    assert len(steps.unique()) > 90


@pytest.mark.parametrize('num_groups', [1, 3, 7])
def test_over_all_groups_every_step_is_as_likely_as_any_other(num_groups, monkeypatch):
    # Every outcome of the draw once, instead of many random ones.
    monkeypatch.setattr(torch, 'randint', lambda high, size, **_: torch.arange(high).repeat_interleave(num_groups))
    counts = Counter(timesteps_of(100, num_groups).flatten().tolist())
    assert counts == dict.fromkeys(range(100), num_groups)


def test_one_group_draws_the_steps_of_the_paper():
    expected = torch.randint(100, (6, ), generator=torch.Generator().manual_seed(3))
    assert torch.equal(timesteps_of(6, 1, seed=3).flatten(), expected)


def test_the_backbone_sees_an_image_once(monkeypatch):
    model = grouped_detector(num_groups=3)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    losses = model.loss(torch.randn(2, 3, *SHAPE), make_samples([1, 2]))
    assert seen == [2]
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(('train_cfg', 'words'), [
    (dict(num_groups=0), ['num_groups', '0', 'at least 1']),
    (dict(num_groups=True), ['num_groups', 'True']),
    (dict(num_groups=2.0), ['num_groups', '2.0']),
    (dict(assigner=dict(type='HungarianAssigner')), ['assigner', 'num_groups']),
])
def test_a_wrong_train_cfg_is_named_when_the_model_is_built(train_cfg, words):
    with pytest.raises(ValueError) as raised:
        grouped_detector(**train_cfg)
    assert all(word in str(raised.value) for word in words)


def test_too_little_memory_says_what_to_lower(monkeypatch):
    head = grouped_detector(num_groups=3).bbox_head

    def no_memory(*_):
        raise torch.cuda.OutOfMemoryError('CUDA out of memory.')

    monkeypatch.setattr(head.stages[0], 'forward', no_memory)
    with pytest.raises(torch.cuda.OutOfMemoryError, match='2 images x 3 groups x 10 boxes.*num_groups'):
        head.loss(make_feats(2), make_samples([1, 1]))
