"""Parity of the federated loss with recordings of the authors' model (tests/data/golden/README.md)."""

import copy
import functools

import pytest
import torch
from golden_recordings import (
    Golden,
    GradientTolerances,
    add_rounding,
    converter,
    one_thread,  # noqa: F401  acts by being here
    relative_difference,
)
from mmdet.registry import MODELS

from mmdet_diffusion.losses.federated_loss import class_log_weights
from mmdet_diffusion.structures import StageOutputs
from mmdet_diffusion.task_modules import pad_objects
from mmdet_diffusion.testing import build_detector

FORMS = {
    'focal': (dict(cls_weight=2.0, alpha=0.25, gamma=2.0),
              dict(type='FocalLoss', use_sigmoid=True, alpha=0.25, gamma=2.0, loss_weight=2.0)),
    # The class cost of the BCE form has no focal factors: 2 (log(1 - p) - log p) is 4 times one of alpha 0.5, gamma 0.
    'bce': (dict(cls_weight=4.0, alpha=0.5, gamma=0.0),
            dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=2.0)),
}


class Case:
    """One recording, the batch that it was made from, and the criterion that should give its losses."""

    def __init__(self, folder, form):
        self.folder, self.form = folder, form
        self.golden, self.file = Golden(folder), f'train_federated_{form}'
        self.recorded = self.golden(self.file)
        self.num_stages = self.golden.num_stages
        self.samples = self.golden.training_samples(self.file)
        self.outputs = StageOutputs(self.recorded['logits'], self.recorded['pred_boxes'])
        self.objects = pad_objects(self.samples, self.golden.num_classes)

    def image_counts(self):
        return [round(weight**2) for weight in self.recorded['fed']['freq_weights'].tolist()]

    def model_cfg(self):
        matching, loss = FORMS[self.form]
        loss_cls = dict(_delete_=True, type='FederatedLoss', loss=loss, image_counts=self.image_counts(),
                        num_sampled_classes=self.recorded['fed']['num_sampled'])
        return self.golden.model_cfg(criterion=dict(assigner=matching, loss_cls=loss_cls))

    def matching(self):
        return self.golden.matching(self.file)

    def class_mask(self):
        return torch.stack([self.recorded['fed']['class_mask'][stage] > 0 for stage in range(self.num_stages)])

    def expected_losses(self):
        return self.golden.losses(self.file)


@functools.cache
def case_of(folder, form):
    return Case(folder, form)


@pytest.fixture(scope='module', params=[(folder, form) for folder in ('mini_r50', 'mini_swin') for form in FORMS],
                ids='-'.join)
def case(request):
    return case_of(*request.param)


def replay(criterion, case):
    """Let the criterion's loss draw the recorded classes."""
    noise = torch.where(case.class_mask(), 1e4, -1e4)
    criterion.loss_cls.draw_gumbel = lambda present: noise
    return criterion


@pytest.fixture(scope='module')
def criterion(case):
    return replay(MODELS.build(case.model_cfg().bbox_head.criterion), case)


def test_weights_of_the_classes_equal_the_recorded_ones(case):
    weights = class_log_weights(case.image_counts(), power=0.5).exp()
    torch.testing.assert_close(weights, case.recorded['fed']['freq_weights'])


def test_present_and_drawn_classes_are_as_many_as_recorded(case):
    """The background is one of the recorded number, so one less is kept; in mini_swin all of those are present."""
    mask = case.class_mask()
    assert set(mask.sum(1).tolist()) == {case.recorded['fed']['num_sampled'] - 1}
    drawn = case.recorded['draw_names'].count('multinomial')
    assert drawn == (case.num_stages if case.golden.meta['backbone'] == 'r50' else 0)


def test_losses_of_the_recorded_outputs_equal_the_recorded_losses(case, criterion):
    losses = criterion.losses(case.outputs, case.objects, case.matching())
    expected = case.expected_losses()
    assert set(expected) == set(losses)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=0)


def test_losses_with_a_class_more_are_not_the_recorded_ones(case, criterion):
    """So that the equality above means something: the background does count as one of the sampled classes."""
    one_more = copy.deepcopy(criterion)
    one_more.loss_cls.num_kept += 1
    losses = one_more.losses(case.outputs, case.objects, case.matching())
    for name, value in case.expected_losses().items():
        if name.endswith('loss_cls'):
            assert losses[name] > value * 1.001


def test_matching_equals_the_recorded_one_wherever_that_lost_no_object(case, criterion):
    index, recorded = criterion.assigner.match(*case.outputs, case.objects), case.matching()
    compared = 0
    for stage in range(case.num_stages):
        for image, lost in enumerate(case.recorded['lost_gt'][stage]):
            if not lost:
                assert torch.equal(index[stage, image], recorded[stage, image])
                compared += 1
    assert compared >= 3 * case.num_stages


# Gradients ------------------------------------------------------------------------------------------------------------


@functools.cache
def parameter_gradients(folder, form, dtype, rounding=0.0):
    """Our gradients under the recorded names, from the recorded images, boxes and matching.

    Args:
        folder: of the recorded model.
        form: of the loss.
        dtype: to compute in.
        rounding: relative size of random errors put into the output of every matrix product of the backbone.
    """
    case = case_of(folder, form)
    detector = build_detector(case.model_cfg()).train()
    detector.load_state_dict(case.golden.state_dict(), strict=True)
    detector = detector.to(dtype)
    if rounding:
        add_rounding(detector.backbone, rounding, torch.Generator().manual_seed(1))
    images = [image.flip(0) for image in case.golden.training_images()]
    batch = dict(inputs=images, data_samples=copy.deepcopy(case.samples))
    data = detector.data_preprocessor(batch, True)
    feats = detector.extract_feat(data['inputs'].to(dtype))
    outputs = detector.bbox_head(feats, case.recorded['noisy_boxes'].to(dtype), case.recorded['t'])
    criterion = replay(detector.bbox_head.criterion, case)
    sum(criterion.losses(outputs, case.objects, case.matching()).values()).backward()
    names = {converter().convert_name(name): name for name in case.golden.checkpoint()}
    return {names[name]: parameter.grad for name, parameter in detector.named_parameters() if parameter.requires_grad}


@pytest.fixture(scope='module')
def gradients(case):
    return parameter_gradients(case.folder, case.form, torch.float32)


def in_backbone(name):
    return name.startswith('backbone.bottom_up.')


# A test below shows for each model and form that those above 1e-3 cannot be 1e-3: rounding moves them by more.
GRADIENTS = {
    ('mini_r50', 'focal'): GradientTolerances(neck_and_head=1e-3, backbone=3e-3, to_exact=1e-3, rounding=5e-6),
    ('mini_r50', 'bce'): GradientTolerances(neck_and_head=1e-3, backbone=8e-3, to_exact=1e-3, rounding=5e-6),
    ('mini_swin', 'focal'): GradientTolerances(neck_and_head=1e-2, backbone=3e-2, to_exact=1e-2, rounding=1e-6),
    ('mini_swin', 'bce'): GradientTolerances(neck_and_head=1e-2, backbone=3e-2, to_exact=1e-2, rounding=1e-6),
}


MAX_ERROR_OF_A_RECORDING = 2.5e-2


def differences(gradients, recorded):
    """Recorded name -> relative difference to a recorded gradient, or to its norm where that alone was recorded."""
    found = {}
    for name, norm in recorded['grad_norms'].items():
        if norm > 1e-6:
            found[name] = float(abs(gradients[name].norm() - norm) / norm)
            if name in recorded['grads'] and 'downsample' not in name:  # mmdet orders Swin's merged patches differently
                found[name] = float((gradients[name] - recorded['grads'][name]).norm() / norm)
    return found


def test_gradients_equal_the_recorded_ones(case, gradients):
    """To the tolerance, or where the recording itself is further off float64, to that and what ours may be off."""
    assert set(case.recorded['grad_norms']) == set(gradients)
    found = differences(gradients, case.recorded)
    assert len(found) >= len(gradients) - 2  # of two biases the gradient is 0
    tolerances = GRADIENTS[case.folder, case.form]
    own_error = differences(parameter_gradients(case.folder, case.form, torch.float64), case.recorded)
    assert max(own_error.values()) < MAX_ERROR_OF_A_RECORDING
    wrong = {name: value for name, value in found.items() if value > max(
        tolerances.backbone if in_backbone(name) else tolerances.neck_and_head,
        own_error[name] + tolerances.to_exact / 2)}
    assert wrong == {}


def test_most_gradients_of_neck_and_head_equal_the_recorded_ones_to_a_ten_thousandth(case, gradients):
    found = differences(gradients, case.recorded)
    of_arrays = sorted(found[name] for name in case.recorded['grads'] if name in found and not in_backbone(name))
    assert len(of_arrays) > 30 and of_arrays[len(of_arrays) // 2] < 1e-4


def test_our_gradients_equal_the_exact_ones(case, gradients):
    tolerance = GRADIENTS[case.folder, case.form].to_exact
    for name, exact in parameter_gradients(case.folder, case.form, torch.float64).items():
        assert (gradients[name] - exact).norm() <= tolerance * exact.norm() + 1e-6, name


def test_rounding_of_single_precision_moves_the_exact_gradients_by_more_than_the_tolerance(case):
    tolerances = GRADIENTS[case.folder, case.form]
    exact = parameter_gradients(case.folder, case.form, torch.float64)
    moved = parameter_gradients(case.folder, case.form, torch.float64, tolerances.rounding)
    moves = {name: relative_difference(moved[name], exact[name]) for name in moved if exact[name].norm() > 1e-6}
    assert max(value for name, value in moves.items() if in_backbone(name)) > tolerances.backbone
    if tolerances.neck_and_head > 1e-3:
        assert max(value for name, value in moves.items() if not in_backbone(name)) > tolerances.neck_and_head


def test_classes_that_are_not_kept_have_no_gradient_in_the_class_layer(case, gradients):
    for stage, mask in case.recorded['fed']['class_mask'].items():
        bias = gradients[f'head.head_series.{stage}.class_logits.bias']
        assert torch.equal(bias != 0, mask > 0)
