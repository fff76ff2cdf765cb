"""Parity with recordings of the authors' model (tests/data/golden/README.md)."""

import copy

import pytest
import torch
from golden_recordings import (
    Golden,
    GradientTolerances,
    add_rounding,
    converter,
    one_thread,  # noqa: F401  acts by being here
    relative_difference,
    rounded,
)
from mmengine.structures import InstanceData

from mmdet_diffusion.diffusion import cosine_alpha_bar, sampling_time_pairs
from mmdet_diffusion.heads import SamplingSettings
from mmdet_diffusion.post_processing import best_pairs, finish_image, merge_steps
from mmdet_diffusion.structures import Detections, StageOutputs, TrainingDraws
from mmdet_diffusion.task_modules import DynamicKAssigner, pad_objects
from mmdet_diffusion.testing import build_detector, data_sample, single_image_objects

STEPS = (1, 2, 4, 8)


@pytest.fixture(scope='module', params=['mini_r50', 'mini_swin'])
def golden(request):
    return Golden(request.param)


@pytest.fixture(scope='module')
def model(golden):
    cfg = golden.model_cfg()
    cfg.test_cfg = dict(cfg.test_cfg, max_per_img=10_000, ensemble='all_but_last')
    detector = build_detector(cfg)
    detector.load_state_dict(golden.state_dict(), strict=True)
    return detector.eval()


# Noise schedule and head ----------------------------------------------------------------------------------------------


def test_alpha_bar_equals_the_recorded_one(golden):
    recorded = golden('schedule')['alphas_cumprod']
    torch.testing.assert_close(cosine_alpha_bar(golden.timesteps), recorded, rtol=1e-6, atol=0)


@pytest.fixture(scope='module')
def head_outputs(golden, model):
    """Ours in float32, the recording, and what both approximate: ours in float64."""
    inputs = golden('head_forward')
    exact_head = copy.deepcopy(model.bbox_head).double()
    with torch.no_grad():
        ours = model.bbox_head(inputs['features'], inputs['boxes'], inputs['t'])
        exact = exact_head([level.double() for level in inputs['features']], inputs['boxes'].double(), inputs['t'])
    return ours, StageOutputs(inputs['logits'], inputs['pred_boxes']), exact


def deviation(outputs, others, stage):
    """Largest absolute difference of each query in logits and in pixels."""
    pairs = zip(outputs, others, strict=True)
    return tuple((one[stage] - other[stage]).abs().amax(-1).flatten() for one, other in pairs)


def test_first_stage_equals_the_recorded_one(head_outputs):
    ours, recorded, _ = head_outputs
    logits, pixels = deviation(ours, recorded, 0)
    assert logits.max() < 2e-4 and pixels.max() < 5e-3


# Share of the queries whose recording agrees with float64. Of the 60 of mini_swin 6 are thin enough to fall out.
WELL_POSED = dict(mini_r50=0.95, mini_swin=0.9)


def test_later_stages_equal_the_recorded_ones_where_those_are_exact(golden, head_outputs):
    """A thin, long box far from its object amplifies rounding: there the recording is off its own float64 value."""
    ours, recorded, exact = head_outputs
    for stage in range(1, golden.num_stages):
        logits, pixels = deviation(ours, recorded, stage)
        logit_error, pixel_error = deviation(recorded, exact, stage)
        well_posed = (logit_error < 1e-3) & (pixel_error < 0.05)
        assert well_posed.float().mean() >= WELL_POSED[golden.name]
        assert logits[well_posed].max() < 2e-3 and pixels[well_posed].max() < 0.1
        differences = (ours.cls_scores[stage] - recorded.cls_scores[stage]).abs().flatten()
        assert differences.quantile(0.95) < 5e-4


def test_ours_is_as_near_to_the_exact_values_as_the_recording(golden, head_outputs):
    ours, recorded, exact = head_outputs
    for stage in range(golden.num_stages):
        for mine, theirs in zip(deviation(ours, exact, stage), deviation(recorded, exact, stage), strict=True):
            assert mine.max() < 2 * theirs.max()
            assert mine.quantile(0.95) < 2 * theirs.quantile(0.95)


def test_head_recording_has_boxes_on_every_level(golden, model):
    levels = model.bbox_head.roi_extractor.map_roi_levels(golden('head_forward')['boxes'])
    assert set(levels.flatten().tolist()) == {0, 1, 2, 3}


# Training -------------------------------------------------------------------------------------------------------------


def recorded_draws(golden):
    """The recorded draws in our form: padding rows stand where the padding boxes will."""
    recorded = golden('train_focal')
    rows, names = iter(recorded['draws']), iter(recorded['draw_names'])
    timesteps, noises, paddings = [], [], []
    for labels in recorded['gt_labels']:
        timesteps.append(next(rows))
        noises.append(next(rows))
        assert (next(names), next(names)) == ('randint', 'randn')
        padding = torch.zeros(golden.num_proposals, 4)
        if len(labels) < golden.num_proposals:
            padding[max(1, len(labels)):] = next(rows)
            assert next(names) == 'randn'
        paddings.append(padding)
    order = torch.rand(len(noises), max(len(labels) for labels in recorded['gt_labels']))
    return TrainingDraws(torch.cat(timesteps), torch.stack(noises), torch.stack(paddings), order)


def test_training_boxes_equal_the_recorded_ones(golden, model):
    recorded = golden('train_focal')
    objects = pad_objects(golden.training_samples('train_focal'), golden.num_classes)
    draws = recorded_draws(golden)
    boxes = model.bbox_head.box_sampler.noisy_boxes(objects, draws)
    # Which objects an overfull image keeps is not recorded.
    comparable = [image for image, labels in enumerate(recorded['gt_labels']) if len(labels) <= golden.num_proposals]
    assert len(comparable) == 4
    assert torch.equal(draws.timesteps, recorded['t'])
    torch.testing.assert_close(boxes[comparable], recorded['noisy_boxes'][comparable].float(), rtol=0, atol=1e-3)


def test_losses_of_the_recorded_outputs_equal_the_recorded_losses(golden, model):
    recorded = golden('train_focal')
    outputs = StageOutputs(recorded['logits'], recorded['pred_boxes'])
    objects = pad_objects(golden.training_samples('train_focal'), golden.num_classes)
    losses = model.bbox_head.criterion.losses(outputs, objects, golden.matching('train_focal'))
    expected = golden.losses('train_focal')
    assert set(expected) == set(losses)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=0)


def parameter_gradients(golden, model, dtype, rounding=0.0):
    """Gradients of our parameters from the recorded images, boxes and matching.

    Args:
        golden: the recordings.
        model: the detector.
        dtype: to compute in.
        rounding: relative size of errors in the backbone, as of :func:`add_rounding`.
    """
    recorded = golden('train_focal')
    detector = copy.deepcopy(model).train().to(dtype)
    if rounding:
        add_rounding(detector.backbone, rounding, torch.Generator().manual_seed(0))
    images = [image.flip(0) for image in golden.training_images()]
    data = detector.data_preprocessor(dict(inputs=images, data_samples=golden.training_samples('train_focal')), True)
    features = detector.extract_feat(data['inputs'].to(dtype))
    outputs = detector.bbox_head(features, recorded['noisy_boxes'].to(dtype), recorded['t'])
    objects = pad_objects(data['data_samples'], golden.num_classes)
    losses = detector.bbox_head.criterion.losses(outputs, objects, golden.matching('train_focal'))
    sum(losses.values()).backward()
    return {name: parameter.grad for name, parameter in detector.named_parameters() if parameter.requires_grad}


@pytest.fixture(scope='module')
def gradients(golden, model):
    return parameter_gradients(golden, model, torch.float32)


@pytest.fixture(scope='module')
def exact_gradients(golden, model):
    return parameter_gradients(golden, model, torch.float64)


def test_trained_parameters_are_those_of_the_recording(golden, gradients):
    assert {converter().convert_name(name) for name in golden('train_focal')['grad_norms']} == set(gradients)


# Rounding takes values across the kink of a ReLU (in a backbone of 8 channels) and grows on thin boxes (in mini_swin
# from the first stage to the second): the last test shows that a tolerance of 1e-3 cannot be asked there.
GRADIENTS = dict(
    mini_r50=GradientTolerances(neck_and_head=1e-3, backbone=5e-3, to_exact=1e-3, rounding=5e-6),
    mini_swin=GradientTolerances(neck_and_head=1e-2, backbone=3e-2, to_exact=3e-2, rounding=1e-6))


def recorded_norms(golden, backbone):
    """Names of theirs and recorded norms of the parameters inside or outside the backbone."""
    norms = golden('train_focal')['grad_norms'].items()
    return {name: norm for name, norm in norms if name.startswith('backbone.bottom_up.') == backbone}


def recorded_gradients(golden):
    """By our names and in our layout."""
    gradients = golden('train_focal')['grads'].items()
    return {converter().convert_name(name): converter().convert_value(name, value) for name, value in gradients}


@pytest.mark.parametrize('part', ['neck_and_head', 'backbone'])
def test_gradients_equal_the_recorded_ones(golden, gradients, part):
    recorded, tolerance = recorded_gradients(golden), getattr(GRADIENTS[golden.name], part)
    norms = recorded_norms(golden, part == 'backbone')
    assert len(norms) > 30
    for theirs, norm in norms.items():
        name = converter().convert_name(theirs)
        assert abs(gradients[name].norm() - norm) <= tolerance * norm + 1e-6, name
        if name in recorded:
            assert (gradients[name] - recorded[name]).norm() <= tolerance * norm + 1e-6, name


def test_most_gradients_of_neck_and_head_equal_the_recorded_ones_to_a_ten_thousandth(golden, gradients):
    differences = [relative_difference(gradients[name], recorded)
                   for name, recorded in recorded_gradients(golden).items() if not name.startswith('backbone.')]
    assert len(differences) > 30
    assert sorted(differences)[len(differences) // 2] < 1e-4


def test_our_gradients_equal_the_exact_ones(golden, gradients, exact_gradients):
    tolerance = GRADIENTS[golden.name].to_exact
    for name, gradient in gradients.items():
        exact = exact_gradients[name]
        assert (gradient - exact).norm() <= tolerance * exact.norm() + 1e-6, name


def test_rounding_of_single_precision_moves_the_exact_gradients_by_more_than_the_tolerance(
        golden, model, exact_gradients):
    tolerances = GRADIENTS[golden.name]
    moved = parameter_gradients(golden, model, torch.float64, tolerances.rounding)
    differences = {name: relative_difference(moved[name], exact_gradients[name]) for name in moved
                   if exact_gradients[name].norm() > 1e-6}
    for part, tolerance in dict(backbone=tolerances.backbone, neck=tolerances.neck_and_head).items():
        if tolerance > 1e-3:
            assert max(value for name, value in differences.items()
                       if name.startswith('backbone.') == (part == 'backbone')) > tolerance


# Matching -------------------------------------------------------------------------------------------------------------


def match(case):
    objects = single_image_objects(case['gt_bboxes'], case['gt_labels'], case['image_size'])
    return DynamicKAssigner().match(case['logits'][None, None], case['boxes'][None, None], objects)[0, 0]


def matcher_cases(golden, lost):
    return [case for case in golden('matcher') if (case['lost_gt'] > 0) == lost]


def test_matching_equals_the_recorded_one_wherever_that_lost_no_object(golden):
    cases = matcher_cases(golden, lost=False)
    assert len(cases) > 10 and any(case['repaired'] for case in cases)
    for case in cases:
        index = match(case)
        assert torch.equal(index >= 0, case['query_mask'])
        assert torch.equal(index[index >= 0], case['gt_index'])


def test_matching_loses_no_object_where_the_recorded_one_did(golden):
    cases = matcher_cases(golden, lost=True)
    assert len(cases) >= 10
    for case in cases:
        assert len(case['boxes']) >= len(case['gt_labels'])
        index = match(case)
        assert len(index[index >= 0].unique()) == len(case['gt_labels'])


def test_assigner_interface_gives_the_same_matching(golden):
    for case in golden('matcher')[:5]:
        result = DynamicKAssigner().assign(
            InstanceData(scores=case['logits'], bboxes=case['boxes']),
            InstanceData(labels=case['gt_labels'], bboxes=case['gt_bboxes']), dict(img_shape=case['image_size']))
        assert torch.equal(result.gt_inds - 1, match(case))


# Sampling -------------------------------------------------------------------------------------------------------------


def inference_sample(golden):
    recorded = golden('inference')
    height, width = recorded['image'].shape[-2:]
    out_height, out_width = recorded['ori_shape']
    sample = data_sample(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), (height, width))
    sample.set_metainfo(dict(ori_shape=(out_height, out_width), scale_factor=(width / out_width, height / out_height)))
    return sample


@pytest.fixture(scope='module')
def features(golden, model):
    image = golden('inference')['image'].flip(0)  # the preprocessor takes BGR
    data = model.data_preprocessor(dict(inputs=[image], data_samples=[inference_sample(golden)]))
    with torch.no_grad():
        return model.extract_feat(data['inputs'])


class Tape:
    """Replays the recorded draws in our order of boxes.

    The original packs kept boxes to the front; ours stay in place. ``orders[step][p]`` is our slot of the recorded
    position p at a step.
    """

    def __init__(self, recorded, dtype=torch.float32):
        draws = iter([draw.to(dtype) for draw in recorded['draws']])
        calls = [next(draws)]
        self.num_proposals = calls[0].shape[1]
        order = torch.arange(self.num_proposals)
        self.orders = [order]
        for logits in recorded['step_logits'][:-1]:
            kept = logits[-1, 0].sigmoid().amax(-1) > 0.5
            parts = order[kept], order[~kept]
            calls += [self._placed(slots, draws) for slots in parts]
            order = torch.cat(parts)
            self.orders.append(order)
        assert next(draws, None) is None
        self.calls = iter(calls)

    def _placed(self, slots, draws):
        draw = next(draws)
        return torch.zeros(1, self.num_proposals, 4, dtype=draw.dtype).index_copy(1, slots, draw)

    def __call__(self, num_boxes):
        assert num_boxes == self.num_proposals
        return next(self.calls)


def test_time_steps_equal_the_recorded_ones(golden):
    for steps in STEPS:
        recorded = golden('inference')[steps]['step_t'].flatten().tolist()
        assert [now for now, _ in sampling_time_pairs(golden.timesteps, steps)] == recorded


def sensitivities(head, features, boxes, t, exact):
    """What a rounding of its inputs to float32 moves each output by in float64: logits and pixels, by stage.

    A thin box is moved by 0.1 pixels where its edges are rounded in another way, and so by another processor's sums.
    """
    moved = dict.fromkeys((0, -1), (torch.zeros(()), torch.zeros(())))
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        inputs = [rounded(values, 2**-24, draw) for values in (boxes, *features)]
        outputs = head(inputs[1:], inputs[0], t)
        moved = {stage: tuple(map(torch.maximum, so_far, deviation(outputs, exact, stage)))
                 for stage, so_far in moved.items()}
    return moved


@pytest.mark.parametrize('steps', STEPS)
def test_each_step_fed_the_recorded_boxes_gives_the_recorded_outputs(
        golden, model, features, exact_model, exact_features, steps):
    """To the tolerances, which bound what the recording is off float64, beyond that and what rounding does."""
    recorded = golden('inference')[steps]
    for step in range(steps):
        boxes, t = recorded['step_inputs'][step], recorded['step_t'][step]
        with torch.no_grad():
            outputs = model.bbox_head(features, boxes.float(), t)
            exact = exact_model.bbox_head(exact_features, boxes.double(), t)
            moved = sensitivities(exact_model.bbox_head, exact_features, boxes.double(), t, exact)
        theirs = recorded['step_logits'][step], recorded['step_boxes'][step]
        for stage, *tolerances in ((0, 2e-4, 1e-2), (-1, 2e-3, 0.1)):
            found, off = deviation(outputs, theirs, stage), deviation(theirs, exact, stage)
            for difference, error, rounding, tolerance in zip(found, off, moved[stage], tolerances, strict=True):
                assert error.max() < tolerance
                assert (rounding < tolerance / 2).float().mean() >= WELL_POSED[golden.name]
                assert (difference < tolerance + error + rounding).all()


@pytest.mark.parametrize('steps', STEPS)
def test_each_denoising_step_gives_the_recorded_next_boxes(golden, model, steps):
    """From the recorded outputs of a step to the recorded boxes of the next one: DDIM, renewal and decoding alone."""
    recorded, sampler = golden('inference')[steps], model.bbox_head.box_sampler
    tape, whwh = Tape(recorded), golden.image_whwh()
    x_t = tape(golden.num_proposals)
    for step, time_pair in enumerate(sampling_time_pairs(golden.timesteps, steps)):
        slots = tape.orders[step]
        boxes = sampler.decode(x_t, whwh)[:, slots]
        torch.testing.assert_close(boxes, recorded['step_inputs'][step].float(), rtol=0, atol=1e-2)
        if time_pair[1] < 0:
            break
        outputs, scores = torch.empty_like(x_t), torch.empty(1, golden.num_proposals)
        outputs[:, slots] = recorded['step_boxes'][step][-1]
        scores[:, slots] = recorded['step_logits'][step][-1].sigmoid().amax(-1)
        noise, fresh = tape(golden.num_proposals), tape(golden.num_proposals)
        x_t = sampler.denoise(x_t, outputs, whwh, time_pair, 1.0, noise)
        x_t = sampler.renew(x_t, scores, 0.5, fresh)


def settings_of(golden, head, steps):
    return SamplingSettings.from_cfg(dict(head.test_cfg, sampling_timesteps=steps), golden.num_proposals,
                                     golden.timesteps)


def finish(golden, detections, settings):
    merged = merge_steps(detections, settings.ensemble)
    image = Detections(*(values[0] for values in merged))
    return finish_image(image, inference_sample(golden).metainfo, settings, rescale=True).to_dict()


# From these steps on the loops part, whatever computes them; the last two tests show why. In mini_r50 a recorded box of
# the seventh of 8 steps has a RoIAlign sample within 0.001 cells of the line one cell outside the map, beyond which
# samples count as 0. In mini_swin every step multiplies rounding by 10 to 40.
COMPARABLE_STEPS = dict(mini_r50={1: 1, 2: 2, 4: 4, 8: 6}, mini_swin={1: 1, 2: 1, 4: 2, 8: 2})
MAX_LOGIT_DIFFERENCE, MAX_PIXEL_DIFFERENCE = 2e-3, 0.1


def run_loop(golden, head, features, steps, dtype):
    """The loop from the image on: nothing but the image, the weights and the draws comes from the recording."""
    outputs, tape, refine = [], Tape(golden('inference')[steps], dtype), head._refine
    head._refine = lambda *inputs: outputs.append(refine(*inputs)) or outputs[-1]
    try:
        with torch.no_grad():
            whwh = golden.image_whwh().to(dtype)
            detections = head.sample(features, whwh, settings_of(golden, head, steps), tape)
    finally:
        del head._refine
    ordered = [
        StageOutputs(output.cls_scores[:, :, slots], output.bboxes[:, :, slots])
        for output, slots in zip(outputs, tape.orders, strict=True)
    ]
    return ordered, detections


@pytest.fixture(scope='module', params=STEPS)
def closed_loop(request, golden, model, features):
    return request.param, *run_loop(golden, model.bbox_head, features, request.param, torch.float32)


@pytest.fixture(scope='module')
def exact_model(model):
    return copy.deepcopy(model).double()


@pytest.fixture(scope='module')
def exact_features(golden, exact_model):
    image = golden('inference')['image'].flip(0)
    data = exact_model.data_preprocessor(dict(inputs=[image], data_samples=[inference_sample(golden)]))
    with torch.no_grad():
        return exact_model.extract_feat(data['inputs'].double())


def test_closed_loop_gives_the_recorded_outputs_at_every_step(golden, closed_loop, exact_model, exact_features):
    """To 2e-3 and 0.1 px beyond what the recording itself is off the same loop in float64, which is bounded too."""
    steps, outputs, _ = closed_loop
    recorded = golden('inference')[steps]
    exact, _ = run_loop(golden, exact_model.bbox_head, exact_features, steps, torch.float64)
    for step in range(COMPARABLE_STEPS[golden.name][steps]):
        theirs = recorded['step_logits'][step], recorded['step_boxes'][step]
        logits, pixels = deviation(outputs[step], theirs, -1)
        logit_error, pixel_error = deviation(theirs, exact[step], -1)
        assert logit_error.max() < 2e-3 and pixel_error.max() < 0.2
        assert logits.max() < MAX_LOGIT_DIFFERENCE + logit_error.max()
        assert pixels.max() < MAX_PIXEL_DIFFERENCE + pixel_error.max()


def test_image_in_gives_the_recorded_detections_out(golden, model, closed_loop):
    steps, _, detections = closed_loop
    recorded, settings = golden('inference')[steps], settings_of(golden, model.bbox_head, steps)
    comparable = COMPARABLE_STEPS[golden.name][steps]
    if comparable >= max(1, steps - 1):  # the recorded detections leave the last step out
        assert unmatched(finish(golden, detections, settings), recorded) == []
        return
    settings = settings._replace(ensemble='all')
    theirs = [best_pairs(recorded['step_logits'][step][-1], recorded['step_boxes'][step][-1])
              for step in range(comparable)]
    ours = finish(golden, detections[:comparable], settings)
    assert unmatched(ours, finish(golden, theirs, settings)) == []


@pytest.mark.parametrize('steps', STEPS)
def test_image_in_gives_the_recorded_detections_out_when_each_step_starts_from_the_recorded_boxes(
        golden, model, features, steps):
    """All steps of all numbers of steps, in both models: with the test of each denoising step, the whole loop."""
    recorded, detections = golden('inference')[steps], []
    for boxes, t in zip(recorded['step_inputs'], recorded['step_t'], strict=True):
        with torch.no_grad():
            outputs = model.bbox_head(features, boxes.float(), t)
        detections.append(best_pairs(outputs.cls_scores[-1], outputs.bboxes[-1]))
    assert unmatched(finish(golden, detections, settings_of(golden, model.bbox_head, steps)), recorded) == []


@pytest.mark.parametrize('steps', STEPS)
def test_recorded_outputs_give_the_recorded_detections(golden, model, steps):
    recorded = golden('inference')[steps]
    detections = [
        best_pairs(logits[-1], boxes[-1])
        for logits, boxes in zip(recorded['step_logits'], recorded['step_boxes'], strict=True)
    ]
    assert unmatched(finish(golden, detections, settings_of(golden, model.bbox_head, steps)), recorded) == []


def unmatched(result, recorded):
    """Recorded detections without one of ours (each used once) of the label, within 2e-3 and 0.2 output pixels."""
    assert len(result['labels']) == len(recorded['labels'])
    fits = (result['labels'] == recorded['labels'][:, None]) & (
        (result['scores'] - recorded['scores'][:, None]).abs() < 2e-3) & (
            (result['bboxes'] - recorded['bboxes'][:, None]).abs().amax(-1) < 0.2)
    used, missing = set(), []
    for number, row in enumerate(fits):
        free = [candidate for candidate in row.nonzero()[:, 0].tolist() if candidate not in used]
        used.update(free[:1])
        missing += [] if free else [number]
    return missing


@pytest.mark.parametrize('golden', ['mini_r50'], indirect=True)
def test_a_hundredth_of_a_pixel_moves_a_recorded_box_by_many_pixels_in_exact_arithmetic(golden, model, features):
    """Why the closed loop of 8 steps is compared up to the sixth: no rounding is fine enough for the seventh."""
    recorded = golden('inference')[8]
    head, exact_features = copy.deepcopy(model.bbox_head).double(), [level.double() for level in features]
    step = COMPARABLE_STEPS[golden.name][8]
    boxes = recorded['step_inputs'][step]
    nudged = boxes + 0.015 * torch.tensor([1.0, 0.0, 1.0, 0.0])
    with torch.no_grad():
        outputs, moved = (head(exact_features, x, recorded['step_t'][step]) for x in (boxes, nudged))
    assert (outputs.bboxes[0] - moved.bboxes[0]).abs().max() > 5


@pytest.mark.parametrize('golden', ['mini_swin'], indirect=True)
@pytest.mark.parametrize('steps', [2, 4, 8])
def test_rounding_moves_the_exact_loop_beyond_the_tolerance_after_the_compared_steps(
        golden, exact_model, exact_features, steps):
    """Errors of 1e-6, as those of single precision, in every matrix product of the head."""
    exact, _ = run_loop(golden, exact_model.bbox_head, exact_features, steps, torch.float64)
    head, step = copy.deepcopy(exact_model.bbox_head), COMPARABLE_STEPS[golden.name][steps]
    add_rounding(head, 1e-6, torch.Generator().manual_seed(0))
    beyond = []
    for _ in range(4):
        moved, _ = run_loop(golden, head, exact_features, steps, torch.float64)
        logits, pixels = deviation(moved[step], exact[step], -1)
        beyond.append(logits.max() > MAX_LOGIT_DIFFERENCE or pixels.max() > MAX_PIXEL_DIFFERENCE)
    assert any(beyond)
