"""The reverse process: batches, seeds, renewal, ensembles, and the dial of test_cfg."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.structures import InstanceData
from torch import nn

from mmdet_diffusion.structures import StageOutputs
from mmdet_diffusion.task_modules import DiffusionBoxSampler, global_noise
from mmdet_diffusion.testing import build_detector, data_sample, random_boxes, small_model_cfg

HEIGHT, WIDTH = 64, 96
KEEP_ALL = dict(nms=None, score_thr=0.0, max_per_img=10_000, renewal_score_thr=None)


@pytest.fixture(scope='module')
def model():
    return lively_detector()


@pytest.fixture(scope='module')
def images():
    return torch.randn((3, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(1))


def lively_detector(**cfg):
    """An untrained detector whose scores spread over 0..1 instead of lying at the prior."""
    model = build_detector(small_model_cfg(**cfg)).eval()
    for stage in model.bbox_head.stages:
        nn.init.normal_(stage.fc_cls.weight, std=0.7)
        nn.init.zeros_(stage.fc_cls.bias)
    return model


def detect(model, images, img_ids, *, img_shapes=None, rescale=True, scale_factor=(1.0, 1.0), **test_cfg):
    model.bbox_head.test_cfg = test_cfg
    samples = [
        data_sample(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), img_shape, img_id=img_id,
                    scale_factor=scale_factor)
        for img_id, img_shape in zip(img_ids, img_shapes or [(HEIGHT, WIDTH)] * len(img_ids), strict=True)
    ]
    return [sample.pred_instances for sample in model.predict(images, samples, rescale=rescale)]


def assert_same_detections(actual, expected, atol=1e-4):
    """Scores agree to ``atol``, boxes to that share of the image's sides."""
    whwh = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    torch.testing.assert_close(actual.scores, expected.scores, atol=atol, rtol=0)
    torch.testing.assert_close(actual.bboxes / whwh, expected.bboxes / whwh, atol=atol, rtol=0)
    assert torch.equal(actual.labels, expected.labels)


def differ(one, other):
    return one.bboxes.shape != other.bboxes.shape or not torch.allclose(one.bboxes, other.bboxes, atol=1e-2)


def record_draws(monkeypatch, head):
    """All draws of the next predictions, in their order."""
    sample, draws = head.sample, []

    def recording(feats, img_whwh, settings, draw, *proposals):
        return sample(feats, img_whwh, settings, lambda number: draws.append(draw(number)) or draws[-1], *proposals)

    monkeypatch.setattr(head, 'sample', recording)
    return draws


def record_signals(monkeypatch, head):
    """What is decoded at each step: x_t, shape (B, N, 4)."""
    decode, signals = head.box_sampler.decode, []
    monkeypatch.setattr(head.box_sampler, 'decode',
                        lambda x_t, img_whwh: signals.append(x_t) or decode(x_t, img_whwh))
    return signals


def run_loop(head, outputs, number_of_boxes, draw=None, **test_cfg):
    """The loop alone, around a network that always says ``outputs``."""
    num_images = outputs.bboxes.size(1)
    head.test_cfg = dict(test_cfg, num_proposals=number_of_boxes)
    feats = tuple(torch.zeros(num_images, 16, HEIGHT // stride, WIDTH // stride) for stride in (4, 8, 16, 32))
    whwh = torch.tensor([[WIDTH, HEIGHT, WIDTH, HEIGHT]]).float().expand(num_images, -1)
    return head.sample(feats, whwh, head.sampling_settings(), draw or global_noise(num_images, torch.device('cpu')))


def stub_network(monkeypatch, head, logits, bboxes):
    """Replace the network by one that always says the same; ``logits`` (B, N, C), ``bboxes`` (B, N, 4)."""
    outputs = StageOutputs(logits[None], bboxes[None])
    monkeypatch.setattr(head, '_refine', lambda box_features, boxes, t: outputs)
    return outputs


def stub_classes_by_step(monkeypatch, head):
    """Replace the network by one that calls everything it sees at its k-th call a thing of class k."""
    calls = []

    def refine(box_features, bboxes, t):
        logits = torch.full((*bboxes.shape[:2], head.num_classes), -9.0)
        logits[..., len(calls)] = 9.0
        calls.append(t)
        whole = bboxes.new_tensor([0.0, 0.0, WIDTH, HEIGHT]).expand_as(bboxes)
        return StageOutputs(logits[None], whole[None])

    monkeypatch.setattr(head, '_refine', refine)
    return calls


# Batches and seeds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('steps', [1, 4])
def test_batched_equals_single(model, images, steps):
    settings = dict(seed=3, sampling_timesteps=steps)
    together = detect(model, images, [10, 11, 12], **settings)
    for index, img_id in enumerate([10, 11, 12]):
        alone, = detect(model, images[index:index + 1], [img_id], **settings)
        assert len(alone.scores) > 1
        assert_same_detections(together[index], alone)


@pytest.mark.parametrize('steps', [1, 4])
def test_batched_equals_single_to_the_last_digits_with_a_network_in_float64(images, steps):
    model = lively_detector().double()
    settings = dict(seed=3, sampling_timesteps=steps)
    together = detect(model, images.double(), [10, 11, 12], **settings)
    for index, img_id in enumerate([10, 11, 12]):
        alone, = detect(model, images[index:index + 1].double(), [img_id], **settings)
        assert_same_detections(together[index], alone, atol=1e-6)


@pytest.mark.parametrize('steps', [1, 4])
def test_batched_equals_single_for_images_of_different_size_in_equal_padding(model, images, steps):
    settings = dict(seed=3, sampling_timesteps=steps)
    shapes = [(HEIGHT, WIDTH), (48, WIDTH), (HEIGHT, 70)]
    together = detect(model, images, [10, 11, 12], img_shapes=shapes, **settings)
    for index, (img_id, (height, width)) in enumerate(zip([10, 11, 12], shapes, strict=True)):
        alone, = detect(model, images[index:index + 1], [img_id], img_shapes=[(height, width)], **settings)
        assert_same_detections(together[index], alone)
        assert alone.bboxes[:, 2].max() <= width and alone.bboxes[:, 3].max() <= height


@pytest.fixture(scope='module')
def exact_model():
    return lively_detector().double()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data(), steps=st.sampled_from([1, 4]), seed=st.integers(0, 2**31), num_boxes=st.integers(1, 60))
def test_any_batch_gives_what_its_images_give_alone(exact_model, data, steps, seed, num_boxes):
    num_images = data.draw(st.integers(2, 4))
    sides = st.tuples(st.integers(16, HEIGHT), st.integers(16, WIDTH))
    shapes = data.draw(st.lists(sides, min_size=num_images, max_size=num_images))
    img_ids = data.draw(st.lists(st.integers(0, 99), min_size=num_images, max_size=num_images))
    images = torch.randn((num_images, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(seed)).double()
    dial = dict(seed=seed, sampling_timesteps=steps, num_proposals=num_boxes)
    together = detect(exact_model, images, img_ids, img_shapes=shapes, **dial)
    for index, of_batch in enumerate(together):
        alone, = detect(exact_model, images[index:index + 1], img_ids[index:index + 1],
                        img_shapes=shapes[index:index + 1], **dial)
        assert_same_detections(of_batch, alone, atol=1e-6)


def test_two_images_give_two_results_at_four_steps(model, images):
    first, second = detect(model, images[:2], [10, 11], seed=3, sampling_timesteps=4)
    assert differ(first, second)


def test_the_same_image_and_id_twice_in_a_batch_give_one_result(model, images):
    first, second = detect(model, images[[0, 0]], [10, 10], seed=3, sampling_timesteps=4)
    assert_same_detections(first, second)


@pytest.mark.parametrize('steps', [1, 4])
def test_the_order_of_the_batch_does_not_matter(model, images, steps):
    settings = dict(seed=3, sampling_timesteps=steps)
    forth = detect(model, images, [10, 11, 12], **settings)
    back = detect(model, images.flip(0), [12, 11, 10], **settings)
    for one, other in zip(forth, back[::-1], strict=True):
        assert_same_detections(one, other)


def test_every_draw_of_an_image_is_bit_equal_in_any_batch(model, images, monkeypatch):
    draws = record_draws(monkeypatch, model.bbox_head)
    settings = dict(seed=3, sampling_timesteps=4)
    detect(model, images, [10, 11, 12], **settings)
    together, draws[:] = list(draws), []
    detect(model, images.flip(0), [12, 11, 10], **settings)
    back, draws[:] = list(draws), []
    assert len(together) == 1 + 3 * 2  # x_T, then noise and renewal of the steps that have a next one
    for index, img_id in enumerate([10, 11, 12]):
        draws.clear()
        detect(model, images[index:index + 1], [img_id], **settings)
        for alone, of_batch, of_reversed in zip(draws, together, back, strict=True):
            assert torch.equal(alone[0], of_batch[index])
            assert torch.equal(alone[0], of_reversed[2 - index])


def test_draws_differ_between_images_seeds_and_steps(model, images, monkeypatch):
    draws = record_draws(monkeypatch, model.bbox_head)
    detect(model, images[:2], [10, 11], seed=3, sampling_timesteps=4)
    detect(model, images[:2], [10, 11], seed=4, sampling_timesteps=4)
    per_image = torch.cat(draws)
    assert len(per_image.flatten(1).unique(dim=0)) == len(per_image) == 28


def test_the_global_random_state_is_untouched_with_a_seed(model, images):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    detect(model, images, [10, 11, 12], seed=3, sampling_timesteps=4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


def test_the_global_random_state_has_no_say_with_a_seed(model, images):
    torch.manual_seed(0)
    one, = detect(model, images[:1], [10], seed=3, sampling_timesteps=4)
    torch.manual_seed(1)
    other, = detect(model, images[:1], [10], seed=3, sampling_timesteps=4)
    assert torch.equal(one.bboxes, other.bboxes)


def test_without_a_seed_the_global_generator_decides(model, images):
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results += detect(model, images[:1], [10], seed=None, sampling_timesteps=4)
    assert torch.equal(results[0].bboxes, results[1].bboxes)
    assert differ(results[0], results[2])


# Renewal --------------------------------------------------------------------------------------------------------------


def test_renewal_on_and_off_both_run_and_differ(model, images):
    settings = dict(seed=3, sampling_timesteps=4, nms=None)
    with_renewal, = detect(model, images[:1], [10], renewal_score_thr=0.9, **settings)
    without, = detect(model, images[:1], [10], renewal_score_thr=None, **settings)
    assert len(with_renewal.scores) and len(without.scores)
    assert differ(with_renewal, without)


@pytest.mark.parametrize('sure', [0, 1])
def test_renewal_uses_the_scores_of_each_image(model, monkeypatch, sure):
    head = model.bbox_head
    logits = torch.full((2, 5, 3), -5.0)
    logits[sure, :, 1] = 5.0
    outputs = stub_network(monkeypatch, head, logits, torch.tensor([8.0, 8.0, 40.0, 40.0]).expand(2, 5, 4))
    signals = record_signals(monkeypatch, head)
    draws = []
    run_loop(head, outputs, 5, lambda number: draws.append(torch.randn(2, number, 4)) or draws[-1],
             sampling_timesteps=2, renewal_score_thr=0.5)
    fresh = draws[2]
    assert torch.equal(signals[1][1 - sure], fresh[1 - sure])
    assert not (signals[1][sure] == fresh[sure]).any()


def test_renewal_replaces_the_boxes_at_or_below_the_threshold_and_no_others(model, monkeypatch):
    head = model.bbox_head
    best = torch.tensor([[-3.0, 0.0, 0.01, 4.0]])  # probability 0.5 is at the threshold
    logits = torch.stack([best, best - 1, best - 2], dim=-1)
    outputs = stub_network(monkeypatch, head, logits, torch.tensor([8.0, 8.0, 40.0, 40.0]).expand(1, 4, 4))
    signals = record_signals(monkeypatch, head)
    draws = []
    run_loop(head, outputs, 4, lambda number: draws.append(torch.randn(1, number, 4)) or draws[-1],
             sampling_timesteps=2, renewal_score_thr=0.5)
    renewed = (signals[1] == draws[2]).all(-1)[0]
    assert renewed.tolist() == [True, True, False, False]


def test_renewal_score_thr_drops_no_detection(model, monkeypatch):
    calls = stub_classes_by_step(monkeypatch, model.bbox_head)
    results = detect(model, torch.zeros(1, 3, HEIGHT, WIDTH), [10], sampling_timesteps=3,
                     **dict(KEEP_ALL, renewal_score_thr=1.0))[0]
    assert len(calls) == 3
    assert len(results.scores) == 3 * model.bbox_head.num_proposals


def test_renewal_score_thr_does_nothing_at_one_step(model, images):
    settings = dict(seed=3, sampling_timesteps=1)
    low, = detect(model, images[:1], [10], renewal_score_thr=0.0, **settings)
    high, = detect(model, images[:1], [10], renewal_score_thr=1.0, **settings)
    assert torch.equal(low.bboxes, high.bboxes)


def test_score_thr_only_filters(model, images, monkeypatch):
    signals = record_signals(monkeypatch, model.bbox_head)
    settings = dict(seed=3, sampling_timesteps=4)
    everything, = detect(model, images[:1], [10], score_thr=0.0, **settings)
    seen, signals[:] = list(signals), []
    threshold = float(everything.scores.median())
    some, = detect(model, images[:1], [10], score_thr=threshold, **settings)
    assert 0 < len(some.scores) < len(everything.scores)
    assert_same_detections(some, everything[everything.scores > threshold], atol=0)
    assert all(torch.equal(one, other) for one, other in zip(seen, signals, strict=True))


# Ensemble -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('ensemble', 'steps', 'counted'), [
    ('all', 3, {0, 1, 2}),
    ('all_but_last', 3, {0, 1}),
    ('last', 3, {2}),
    ('all', 1, {0}),
    ('all_but_last', 1, {0}),
    ('last', 1, {0}),
])
def test_ensemble_counts_the_steps_of_its_name(model, monkeypatch, ensemble, steps, counted):
    stub_classes_by_step(monkeypatch, model.bbox_head)
    results, = detect(model, torch.zeros(1, 3, HEIGHT, WIDTH), [10], ensemble=ensemble, sampling_timesteps=steps,
                      **KEEP_ALL)
    number = model.bbox_head.num_proposals
    assert results.labels.bincount(minlength=3).tolist() == [number * (step in counted) for step in range(3)]


# Number of boxes and steps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('number', [1, 3, 25])
def test_number_of_boxes_needs_not_be_that_of_training(model, images, monkeypatch, number):
    assert number != model.bbox_head.num_proposals
    signals = record_signals(monkeypatch, model.bbox_head)
    results = detect(model, images[:2], [10, 11], num_proposals=number, sampling_timesteps=2, **KEEP_ALL)
    assert [signal.shape for signal in signals] == [(2, number, 4)] * 2
    for image in results:
        assert 0 < len(image.scores) <= 2 * number
        assert image.bboxes.isfinite().all() and image.scores.isfinite().all()


def test_fewer_than_five_proposals_train_and_predict(images):
    model = lively_detector(num_proposals=3)
    sample = data_sample(random_boxes(2, (HEIGHT, WIDTH), torch.Generator().manual_seed(0)), torch.tensor([0, 2]),
                         (HEIGHT, WIDTH))
    losses = model.loss(images[:1], [sample])
    assert all(value.isfinite() for value in losses.values())
    results, = detect(model, images[:1], [10], sampling_timesteps=2, **KEEP_ALL)
    assert 0 < len(results.scores) <= 6


@pytest.mark.parametrize(('steps', 'times'), [
    (1, [999]),
    (2, [999, 499]),
    (3, [999, 665, 332]),  # 1000 / 3 - 1 = 332.33, 2000 / 3 - 1 = 665.67, truncated
    (4, [999, 749, 499, 249]),
    (5, [999, 799, 599, 399, 199]),
])
def test_the_head_is_asked_at_the_steps_of_the_schedule(model, images, steps, times):
    asked = []
    hook = model.bbox_head.time_embedding.register_forward_pre_hook(lambda module, args: asked.append(args[0]))
    results = detect(model, images[:2], [10, 11], sampling_timesteps=steps)
    hook.remove()
    assert [t.tolist() for t in asked] == [[time, time] for time in times]
    assert all(image.bboxes.isfinite().all() for image in results)


@pytest.mark.parametrize('steps', range(1, 8))
def test_every_number_of_steps_of_a_short_schedule_works(images, steps):
    model = lively_detector(box_sampler=dict(num_train_timesteps=7))
    asked = []
    model.bbox_head.time_embedding.register_forward_pre_hook(lambda module, args: asked.append(int(args[0][0])))
    results, = detect(model, images[:1], [10], sampling_timesteps=steps, **KEEP_ALL)
    assert len(asked) == len(set(asked)) == steps
    assert asked == sorted(asked, reverse=True) and asked[0] == 6 and asked[-1] >= 0
    assert results.bboxes.isfinite().all() and results.scores.isfinite().all()


# DDIM in the loop -----------------------------------------------------------------------------------------------------


def run_with_start(model, images, start, eta):
    head = model.bbox_head
    head.test_cfg = dict(sampling_timesteps=4, eta=eta, renewal_score_thr=None, num_proposals=start.size(1))
    draws = iter([start])
    return head.sample(model.extract_feat(images), torch.tensor([[WIDTH, HEIGHT, WIDTH, HEIGHT]]).float(),
                       head.sampling_settings(), lambda number: next(draws, torch.randn(1, number, 4)))[-1].bboxes


@torch.no_grad()
def test_without_eta_the_start_decides_all(model, images):
    start = torch.randn(1, 6, 4)
    one, other = (run_with_start(model, images[:1], start, eta=0.0) for _ in range(2))
    assert torch.equal(one, other)


@torch.no_grad()
def test_with_eta_the_later_draws_matter(model, images):
    start = torch.randn(1, 6, 4)
    one, other = (run_with_start(model, images[:1], start, eta=0.1) for _ in range(2))
    assert not torch.allclose(one, other, atol=1e-2)


@pytest.mark.parametrize('eta', [0, 0.0, 0.3, 0.7, 1, 1.0])
@pytest.mark.parametrize('steps', [2, 5])
def test_every_eta_gives_finite_results(model, images, eta, steps):
    for image in detect(model, images, [10, 11, 12], eta=eta, sampling_timesteps=steps, seed=0):
        assert len(image.scores)
        assert image.bboxes.isfinite().all() and image.scores.isfinite().all()


def perfect_outputs(monkeypatch, head, number=6):
    """A network that always gives the same boxes and is sure of them."""
    boxes = random_boxes(2 * number, (HEIGHT, WIDTH), torch.Generator().manual_seed(2)).view(2, number, 4)
    logits = torch.full((2, number, 3), -9.0)
    logits[..., 2] = torch.linspace(5, 9, number)
    return stub_network(monkeypatch, head, logits, boxes)


@pytest.mark.parametrize('steps', [1, 2, 5])
def test_the_detections_of_a_perfect_network_are_its_boxes(model, monkeypatch, steps):
    outputs = perfect_outputs(monkeypatch, model.bbox_head)
    results = detect(model, torch.zeros(2, 3, HEIGHT, WIDTH), [10, 11], sampling_timesteps=steps, num_proposals=6,
                     nms=dict(type='nms', iou_threshold=0.999))
    for image, expected in zip(results, outputs.bboxes[0], strict=True):
        torch.testing.assert_close(image.bboxes, expected.flip(0), atol=1e-4, rtol=0)  # the surest one is the last
        assert image.labels.tolist() == [2] * 6


@pytest.mark.parametrize('eta', [0.0, 1.0])
def test_the_boxes_of_a_perfect_network_are_where_the_loop_ends(model, monkeypatch, eta):
    head = model.bbox_head
    outputs = perfect_outputs(monkeypatch, head)
    signals = record_signals(monkeypatch, head)
    torch.manual_seed(0)
    run_loop(head, outputs, 6, sampling_timesteps=1000, eta=eta, renewal_score_thr=0.5)
    whwh = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]).float()
    distance = [(head.box_sampler.coder.decode(signal, whwh) - outputs.bboxes[0]).abs().max() for signal in signals]
    assert len(distance) == 1000
    assert distance[0] > 20
    assert distance[-1] < 1


def test_without_eta_a_perfect_network_keeps_the_noise_that_it_started_from(model, monkeypatch):
    head = model.bbox_head
    outputs = perfect_outputs(monkeypatch, head)
    signals = record_signals(monkeypatch, head)
    steps = 5
    run_loop(head, outputs, 6, sampling_timesteps=steps, eta=0.0, renewal_score_thr=None)
    whwh = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]).float()
    corners = outputs.bboxes[0] / whwh
    centres, sizes = (corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]
    x_start = torch.cat([centres, sizes], dim=-1) * 4 - 2
    for step, signal in enumerate(signals):
        share = head.box_sampler.schedule.alpha_bar[999 - 200 * step]
        expected = share.sqrt() * x_start + (1 - share).sqrt() * signals[0]
        torch.testing.assert_close(signal, expected.float(), atol=1e-3, rtol=0)


# Results --------------------------------------------------------------------------------------------------------------


def test_without_rescale_boxes_are_in_the_frame_of_the_network_input(model, images):
    settings = dict(seed=3, scale_factor=(2.0, 4.0))
    original, = detect(model, images[:1], [10], rescale=True, **settings)
    network, = detect(model, images[:1], [10], rescale=False, **settings)
    torch.testing.assert_close(network.bboxes, original.bboxes * torch.tensor([2.0, 4.0, 2.0, 4.0]))
    assert original.bboxes[:, 2].max() <= WIDTH / 2 < network.bboxes[:, 2].max()


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('steps', [1, 4])
def test_detections_are_float32(model, images, autocast, steps):
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        results = detect(model, images[:2], [10, 11], sampling_timesteps=steps)
    for image in results:
        assert len(image.scores)
        assert image.bboxes.dtype == image.scores.dtype == torch.float32
        assert image.labels.dtype == torch.int64


@pytest.mark.parametrize('steps', [1, 4])
def test_signals_and_boxes_stay_float32_within_the_loop(model, images, monkeypatch, steps):
    signals = record_signals(monkeypatch, model.bbox_head)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        detect(model, images[:2], [10, 11], sampling_timesteps=steps, seed=0)
    assert [signal.dtype for signal in signals] == [torch.float32] * steps


def test_detections_are_sorted_by_score_and_limited_in_number(model, images):
    results, = detect(model, images[:1], [10], sampling_timesteps=4, **dict(KEEP_ALL, max_per_img=7))
    everything, = detect(model, images[:1], [10], sampling_timesteps=4, **KEEP_ALL)
    assert len(results.scores) == 7 < len(everything.scores)
    assert (everything.scores.diff() <= 0).all() and (results.scores.diff() <= 0).all()


def test_no_limit_and_no_threshold_are_said_as_in_mmdetection(model, images):
    unlimited, = detect(model, images[:1], [10], sampling_timesteps=4, seed=0,
                        **dict(KEEP_ALL, max_per_img=-1, score_thr=None))
    everything, = detect(model, images[:1], [10], sampling_timesteps=4, seed=0, **KEEP_ALL)
    assert len(everything.scores) > model.bbox_head.num_proposals
    assert torch.equal(unlimited.scores, everything.scores) and torch.equal(unlimited.bboxes, everything.bboxes)


# The dial -------------------------------------------------------------------------------------------------------------


def test_test_cfg_can_be_changed_between_two_predictions(images):
    model = build_detector(small_model_cfg()).eval()
    asked = []
    model.bbox_head.time_embedding.register_forward_pre_hook(lambda module, args: asked.append(int(args[0][0])))
    sample = data_sample(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), (HEIGHT, WIDTH))
    model.predict(images[:1], [sample])
    model.test_cfg.sampling_timesteps = 2
    model.predict(images[:1], [sample])
    model.bbox_head.test_cfg.sampling_timesteps = 4
    model.predict(images[:1], [sample])
    assert asked == [999, 999, 499, 999, 749, 499, 249]


def test_a_value_that_turns_wrong_on_the_built_model_raises_at_the_next_prediction(images):
    model = build_detector(small_model_cfg()).eval()
    model.test_cfg.eta = 2
    sample = data_sample(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), (HEIGHT, WIDTH))
    with pytest.raises(ValueError, match='eta.*2'):
        model.predict(images[:1], [sample])


@pytest.mark.parametrize(('key', 'value'), [
    ('sampling_timesteps', 0),
    ('sampling_timesteps', 1001),
    ('sampling_timesteps', 1.5),
    ('sampling_timesteps', -1),
    ('eta', -0.1),
    ('eta', 1.1),
    ('eta', float('nan')),
    ('ensemble', 'most'),
    ('ensemble', None),
    ('num_proposals', 0),
    ('num_proposals', 2.5),
    ('score_thr', 1),
    ('score_thr', -0.1),
    ('renewal_score_thr', 1.5),
    ('nms', dict(type='nms')),
    ('nms', dict(type='nms', iou_thr=0.5)),
    ('nms', dict(type='soft', iou_threshold=0.5)),  # there is a soft_nms
    ('nms', 0.5),
    ('eta', 'one'),
    ('max_per_img', 0),
    ('max_per_img', -2),
    ('max_per_img', 2.0),
    ('max_per_img', True),
    ('max_per_img', None),
    ('min_bbox_size', -1),
    ('seed', 'one'),
])
def test_a_wrong_value_in_test_cfg_raises_at_build_naming_key_and_value(key, value):
    cfg = small_model_cfg()
    cfg.test_cfg[key] = value
    with pytest.raises(ValueError) as error:
        build_detector(cfg)
    assert key in str(error.value)
    assert repr(value) in str(error.value)


def test_more_steps_than_a_short_schedule_has_raise_at_build():
    cfg = small_model_cfg(box_sampler=dict(num_train_timesteps=7))
    cfg.test_cfg.sampling_timesteps = 8
    with pytest.raises(ValueError, match=r'sampling_timesteps.*1\.\.7.*8'):
        build_detector(cfg)


@pytest.mark.parametrize('key', ['sampling_steps', 'num_boxes', 'box_renewal'])
def test_an_unknown_key_in_test_cfg_raises_at_build_and_lists_the_known_ones(key):
    cfg = small_model_cfg()
    cfg.test_cfg[key] = 4
    with pytest.raises(ValueError, match=f'unknown key.*{key}.*sampling_timesteps'):
        build_detector(cfg)


@pytest.mark.parametrize(('change', 'words'), [
    (dict(num_proposals=0), ['num_proposals', '0']),
    (dict(num_stages=0), ['num_stages', '0']),
    (dict(num_classes=0), ['num_classes', '0']),
    (dict(prior_prob=0.0), ['prior_prob', '0.0']),
    (dict(prior_prob=1), ['prior_prob', '1']),
    (dict(box_sampler=dict(signal_scale=0)), ['signal_scale', '0']),
    (dict(box_sampler=dict(signal_scale=-1.0)), ['signal_scale', '-1.0']),
    (dict(box_sampler=dict(padding='zeros')), ['padding', "'zeros'", 'gaussian, uniform, full_image, repeat']),
    (dict(box_sampler=dict(num_train_timesteps=0)), ['num_train_timesteps', '0']),
    (dict(stage=dict(num_attn_heads=3)), ['feat_channels', '16', 'num_attn_heads', '3']),
    (dict(roi_extractor=dict(out_channels=8)), ['out_channels', '8', 'feat_channels', '16']),
])
def test_a_wrong_value_of_the_head_raises_at_build_naming_key_and_value(change, words):
    with pytest.raises(ValueError) as error:
        build_detector(small_model_cfg(**change))
    assert all(word in str(error.value) for word in words), error.value


def test_a_box_sampler_refuses_a_wrong_padding_by_itself():
    with pytest.raises(ValueError, match="padding.*'mirror'"):
        DiffusionBoxSampler(padding='mirror')


# Even start noise -----------------------------------------------------------------------------------------------------


def test_even_start_boxes_cover_the_image_and_later_noise_is_random(model, images, monkeypatch):
    signals = record_signals(monkeypatch, model.bbox_head)
    detect(model, images, [0, 1], seed=3, start_noise='even', num_proposals=64, sampling_timesteps=2)
    first = torch.special.ndtr(signals[0])
    assert all(len((first[image, :, value] * 32).long().unique()) == 32 for image in range(2) for value in range(4))
    assert not torch.equal(first[0], first[1])


def test_even_start_boxes_of_an_image_depend_on_seed_and_image_alone(model, images, monkeypatch):
    signals = record_signals(monkeypatch, model.bbox_head)
    both = dict(seed=3, start_noise='even')
    detect(model, images, [0, 1], **both)
    detect(model, images[1:], [1], **both)
    detect(model, images[1:], [1], seed=4, start_noise='even')
    assert torch.equal(signals[0][1], signals[1][0]) and not torch.equal(signals[1], signals[2])


def test_an_unknown_start_noise_is_named(model, images):
    with pytest.raises(ValueError, match=r'start_noise.*random, even.*sobol'):
        detect(model, images, [0, 1], start_noise='sobol')


# Boxes to start from --------------------------------------------------------------------------------------------------


def first_boxes(model, images, proposals, **test_cfg):
    """Boxes that go into the first step, with the same noise at every call."""
    model.bbox_head.test_cfg = dict(KEEP_ALL, num_proposals=10, **test_cfg)
    head = model.bbox_head
    generator = torch.Generator().manual_seed(0)
    whwh = torch.tensor([[WIDTH, HEIGHT, WIDTH, HEIGHT]] * len(images), dtype=torch.float32)
    with torch.no_grad():
        step = next(head.sampling_steps(model.extract_feat(images), whwh, head.sampling_settings(),
                                        lambda number: torch.randn((len(images), number, 4), generator=generator),
                                        proposals))
    return step.noisy_bboxes


@pytest.mark.parametrize('start_noise', ['random', 'even'])
def test_known_boxes_take_the_first_places_and_at_most_half_of_them(model, images, start_noise):
    known = random_boxes(7, (HEIGHT, WIDTH), torch.Generator().manual_seed(3))
    plain = first_boxes(model, images, (), start_noise=start_noise)
    started = first_boxes(model, images, [known[:3], None, known], start_noise=start_noise)
    torch.testing.assert_close(started[0, :3], known[:3], atol=1e-3, rtol=0)
    torch.testing.assert_close(started[2, :5], known[:5], atol=1e-3, rtol=0)
    for image, number in enumerate((3, 0, 5)):
        assert torch.equal(started[image, number:], plain[image, number:])


def test_proposals_of_a_sample_are_started_from(model, images):
    model.bbox_head.test_cfg = dict(KEEP_ALL, num_proposals=10, seed=0)
    found = []
    for proposals in (None, random_boxes(4, (HEIGHT, WIDTH), torch.Generator().manual_seed(3)), torch.zeros(0, 4)):
        sample = data_sample(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), (HEIGHT, WIDTH), img_id='a')
        if proposals is not None:
            sample.proposals = InstanceData(bboxes=proposals)
        found.append(model.predict(images[:1], [sample])[0].pred_instances)
    assert differ(found[0], found[1])
    assert torch.equal(found[0].bboxes, found[2].bboxes)
