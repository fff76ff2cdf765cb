"""One training step: gradients, precision, odd ground truth, initial values, and the losses recomputed."""

import math
import warnings

import pytest
import torch

from mmdet_diffusion.ops.torch_state import autocasts_on_cpu
from mmdet_diffusion.structures import StageOutputs
from mmdet_diffusion.task_modules import pad_objects
from mmdet_diffusion.testing import build_detector, data_sample, random_boxes, small_model_cfg

HEIGHT, WIDTH = 64, 96
LOSSES = ('loss_cls', 'loss_bbox', 'loss_iou')


def trainable_detector(**cfg):
    """A small detector with nothing frozen."""
    model_cfg = small_model_cfg(**cfg)
    model_cfg.backbone.update(frozen_stages=-1, norm_eval=False, norm_cfg=dict(type='BN', requires_grad=True))
    return build_detector(model_cfg).train()


def make_images(number=2):
    return torch.randn((number, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(1))


def make_samples(*counts, num_classes=3, seed=0):
    """A data sample for each image with so many objects."""
    generator = torch.Generator().manual_seed(seed)
    return [
        data_sample(random_boxes(count, (HEIGHT, WIDTH), generator),
                    torch.randint(num_classes, (count, ), generator=generator), (HEIGHT, WIDTH), img_id=img_id)
        for img_id, count in enumerate(counts)
    ]


def step(model, samples, *, autocast=False, seed=0):
    """Losses of one step, whose gradients are then on the parameters."""
    torch.manual_seed(seed)
    model.zero_grad(set_to_none=True)
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        losses = model.loss(make_images(len(samples)), samples)
    sum(losses.values()).backward()
    return {name: value.detach() for name, value in losses.items()}


def assert_finite(losses, model):
    wrong = [name for name, value in losses.items() if not value.isfinite()]
    assert not wrong
    wrong = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.isfinite().all()]
    assert not wrong


@pytest.mark.parametrize('loss', ['GIoULoss', 'CIoULoss', 'DIoULoss', 'EIoULoss', 'SIoULoss', 'IoULoss'])
def test_any_iou_loss_of_mmdetections_is_finite_with_and_without_objects(loss):
    model_cfg = small_model_cfg()
    model_cfg.bbox_head.criterion.loss_iou = dict(type=loss, loss_weight=2.0)
    model = build_detector(model_cfg).train()
    for counts in ((3, 0), (0, 0)):
        losses = step(model, make_samples(*counts))
        assert all(value.isfinite() for value in losses.values())
        assert all(one.grad.isfinite().all() for one in model.parameters() if one.grad is not None)
        assert (losses['loss_iou'] > 0) == (counts[0] > 0)


@pytest.mark.parametrize('wrap', [lambda loss: loss, lambda loss: dict(
    type='FederatedLoss', loss=loss, image_counts=[1, 1, 1])], ids=['alone', 'federated'])
def test_a_softmax_over_classes_is_refused_when_the_model_is_built(wrap):
    model_cfg = small_model_cfg()
    model_cfg.bbox_head.criterion.loss_cls = wrap(dict(type='CrossEntropyLoss'))
    with pytest.raises(ValueError, match='loss_cls of DiffusionDetCriterion is a CrossEntropyLoss with use_sigmoid='):
        build_detector(model_cfg)


def test_bins_that_are_not_square_make_a_head_that_learns():
    model_cfg = small_model_cfg()
    model_cfg.bbox_head.roi_extractor = dict(
        type='SingleRoIExtractor', out_channels=16, featmap_strides=[4, 8, 16, 32],
        roi_layer=dict(type='RoIAlign', output_size=(7, 5), sampling_ratio=2))
    model = build_detector(model_cfg).train()
    assert all(value.isfinite() for value in step(model, make_samples(3, 2)).values())


# Gradients and precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('autocast', [False, True])
def test_every_parameter_has_a_finite_gradient_after_one_step(autocast):
    model = trainable_detector()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert_finite(step(model, make_samples(3, 2), autocast=autocast), model)


def test_gradients_reach_the_head_the_neck_and_the_backbone():
    model = trainable_detector()
    step(model, make_samples(3, 2))
    head = model.bbox_head
    for part in (model.backbone.conv1, model.neck.fpn_convs[0], *head.stages, head.time_embedding):
        assert any(parameter.grad.abs().max() > 0 for parameter in part.parameters())


@pytest.mark.parametrize('autocast', [False, True])
def test_losses_matching_and_boxes_are_float32(monkeypatch, autocast):
    model = trainable_detector()
    head, criterion = model.bbox_head, model.bbox_head.criterion
    seen = dict(logits=[], boxes=[], matching=[], losses=[])
    head.stages[0].fc_cls.register_forward_hook(lambda module, args, output: seen['logits'].append(output.dtype))
    criterion.register_forward_pre_hook(lambda module, args: seen['boxes'].append(args[0].bboxes.dtype))
    look_up_boxes(monkeypatch, head, lambda boxes: seen['boxes'].append(boxes.dtype))
    match = criterion.assigner.match

    def recording_match(cls_scores, bboxes, objects):
        seen['matching'] += [cls_scores.dtype, bboxes.dtype, objects.bboxes.dtype, objects.img_whwh.dtype]
        assert not autocasts_on_cpu()
        return match(cls_scores, bboxes, objects)

    monkeypatch.setattr(criterion.assigner, 'match', recording_match)
    for part in (criterion.loss_cls, criterion.loss_bbox, criterion.loss_iou):
        part.register_forward_hook(lambda module, args, output: seen['losses'].extend([args[0].dtype, output.dtype]))
    losses = step(model, make_samples(3, 2), autocast=autocast)

    assert seen['logits'] == [torch.bfloat16 if autocast else torch.float32]
    assert seen['boxes'] == [torch.float32] * 3  # of two stages' look-ups and of the criterion
    assert seen['matching'] == [torch.float32] * 4
    assert seen['losses'] == [torch.float32] * 6
    assert {value.dtype for value in losses.values()} == {torch.float32}


def look_up_boxes(monkeypatch, head, watch):
    """Call ``watch`` with the boxes of each RoI look-up."""
    forward = head.roi_extractor.forward

    def watched(feats):
        look_up = forward(feats)
        return lambda boxes: (watch(boxes), look_up(boxes))[1]

    monkeypatch.setattr(head.roi_extractor, 'forward', watched)


def test_losses_under_autocast_are_close_to_those_in_float32():
    model = trainable_detector()
    exact, rough = (step(model, make_samples(3, 2), autocast=autocast) for autocast in (False, True))
    assert float(sum(rough.values())) == pytest.approx(float(sum(exact.values())), rel=0.1)


# Odd ground truth -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('autocast', [False, True])
def test_a_batch_without_objects_has_no_box_loss_and_finite_gradients(autocast):
    model = trainable_detector()
    losses = step(model, make_samples(0, 0), autocast=autocast)
    assert_finite(losses, model)
    for name, value in losses.items():
        assert value == 0 if name.endswith(('loss_bbox', 'loss_iou')) else value > 0


@pytest.mark.parametrize('counts', [(0, 3), (3, 0), (0, 4, 0)])
def test_images_without_objects_beside_others_keep_all_finite(counts):
    model = trainable_detector()
    losses = step(model, make_samples(*counts))
    assert_finite(losses, model)
    assert all(value > 0 for value in losses.values())


@pytest.mark.parametrize('padding', ['gaussian', 'uniform', 'full_image', 'repeat'])
@pytest.mark.parametrize('counts', [(25, 11), (10, 0), (200, 1)])
def test_more_objects_than_proposals_keep_all_finite(padding, counts):
    model = trainable_detector(box_sampler=dict(padding=padding))
    assert model.bbox_head.num_proposals == 10
    assert_finite(step(model, make_samples(*counts)), model)


def test_more_objects_than_proposals_match_every_query_once():
    outputs, objects = random_case(counts=(25, ), num_proposals=10)
    gt_index = build_detector(small_model_cfg()).bbox_head.criterion.assigner.match(*outputs, objects)
    for stage in gt_index[:, 0]:
        assert (stage >= 0).all()
        assert len(stage.unique()) == 10


def test_boxes_without_area_are_left_out_with_a_warning_that_names_the_image():
    model = trainable_detector()
    no_area = torch.tensor([[10.0, 10, 10, 40], [20, 30, 60, 30], [50, 50, 20, 20], [200, 10, 240, 40], [5, 5, 40, 40]])
    sample = data_sample(no_area, torch.tensor([0, 1, 2, 0, 1]), (HEIGHT, WIDTH), img_path='street.jpg')
    with pytest.warns(UserWarning, match='street.jpg') as caught:
        losses = step(model, [sample, *make_samples(2)])
    assert len([warning for warning in caught if 'street.jpg' in str(warning.message)]) == 4
    assert_finite(losses, model)


def test_boxes_without_area_change_no_loss():
    model = build_detector(small_model_cfg()).train()
    kept = data_sample(torch.tensor([[5.0, 5, 40, 40]]), torch.tensor([1]), (HEIGHT, WIDTH))
    sample = data_sample(torch.tensor([[5.0, 5, 40, 40], [10, 10, 10, 40]]), torch.tensor([1, 0]), (HEIGHT, WIDTH))
    outputs, _ = random_case(counts=(1, ))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        one, other = (model.bbox_head.criterion(outputs, pad_objects([image], 3)) for image in (kept, sample))
    for name in one:
        torch.testing.assert_close(one[name], other[name])


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_box_that_is_not_finite_raises_and_names_the_image(value):
    sample = data_sample(torch.tensor([[5.0, 5, value, 40]]), torch.tensor([1]), (HEIGHT, WIDTH), img_path='street.jpg')
    with pytest.raises(ValueError, match='street.jpg.*not finite'):
        step(trainable_detector(), [sample])


@pytest.mark.parametrize('label', [3, -1])
def test_a_label_outside_the_classes_raises_and_names_image_and_label(label):
    bboxes = torch.tensor([[5.0, 5, 40, 40]])
    sample = data_sample(bboxes, torch.tensor([label]), (HEIGHT, WIDTH), img_path='street.jpg')
    with pytest.raises(ValueError, match=f'street.jpg.*label {label}.*num_classes'):
        step(trainable_detector(), [sample])


def test_predicted_boxes_of_no_area_give_finite_losses_and_gradients():
    outputs, objects = random_case(counts=(2, 0, 3))
    bboxes = outputs.bboxes.detach()
    bboxes[..., :5, 2:] = bboxes[..., :5, :2]
    bboxes[..., 5, :] = 0
    bboxes[..., 6, :] = torch.tensor([-1e5, -1e5, 1e5, 1e5])
    bboxes.requires_grad_()
    losses = build_detector(small_model_cfg()).bbox_head.criterion(outputs._replace(bboxes=bboxes), objects)
    assert all(value.isfinite() for value in losses.values())
    assert torch.autograd.grad(sum(losses.values()), bboxes)[0].isfinite().all()


# Initial values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('num_classes', [1, 3, 4])
def test_class_bias_starts_at_the_prior_and_the_box_bias_does_not(num_classes):
    prior = -math.log((1 - 0.01) / 0.01)
    for stage in trainable_detector(num_classes=num_classes).bbox_head.stages:
        torch.testing.assert_close(stage.fc_cls.bias, torch.full((num_classes, ), prior))
        assert not torch.isclose(stage.fc_reg.bias, torch.tensor(prior)).any()


@pytest.mark.parametrize('num_classes', [1, 3, 4])
def test_the_prior_touches_the_class_bias_and_no_other_parameter(num_classes):
    one = trainable_detector(num_classes=num_classes, prior_prob=0.01).state_dict()
    other = trainable_detector(num_classes=num_classes, prior_prob=0.2).state_dict()
    changed = {name for name, value in one.items() if not torch.equal(value, other[name])}
    assert changed == {f'bbox_head.stages.{stage}.fc_cls.bias' for stage in range(2)}


@pytest.mark.parametrize('num_classes', [1, 3, 4])
def test_any_number_of_classes_trains(num_classes):
    model = trainable_detector(num_classes=num_classes)
    assert_finite(step(model, make_samples(3, 2, num_classes=num_classes)), model)


def test_untrained_scores_are_near_the_prior():
    model = build_detector(small_model_cfg()).eval()
    with torch.no_grad():
        scores = model(make_images(), mode='tensor').cls_scores.sigmoid()
    assert 0.001 < scores.median() < 0.1


# Learning -------------------------------------------------------------------------------------------------------------


def train_on_one_image(seeds, lr):
    """Train a detector on one image, whose draws of the k-th step are those of ``seeds[k]``; give model and sample."""
    model = trainable_detector()
    model.backbone.eval()  # batch norm over one image is noise of its own
    samples = make_samples(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for seed in seeds:
        step(model, samples, seed=seed)
        optimizer.step()
    return model, samples


def mean_loss(model, samples, seeds):
    return sum(float(sum(step(model, samples, seed=seed).values())) for seed in seeds) / len(seeds)


def test_fifty_steps_on_one_image_and_one_noise_halve_the_loss():
    before = mean_loss(*train_on_one_image([], lr=1e-3), seeds=[0])
    after = mean_loss(*train_on_one_image([0] * 50, lr=1e-3), seeds=[0])
    assert after < 0.5 * before


def test_fifty_steps_on_one_image_lower_the_loss_at_noise_never_seen():
    unseen = range(1000, 1010)
    before = mean_loss(*train_on_one_image([], lr=3e-3), seeds=unseen)
    after = mean_loss(*train_on_one_image(range(50), lr=3e-3), seeds=unseen)
    assert after < 0.8 * before


# The losses themselves ------------------------------------------------------------------------------------------------


def random_case(counts=(3, 0, 5), num_proposals=12, num_stages=3, num_classes=3, seed=0):
    """Outputs of no network, and objects."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_stages, len(counts), num_proposals)
    logits = torch.randn((*shape, num_classes), generator=generator).mul(2).requires_grad_()
    bboxes = random_boxes(math.prod(shape), (HEIGHT, WIDTH), generator).view(*shape, 4).requires_grad_()
    return StageOutputs(logits, bboxes), pad_objects(make_samples(*counts, seed=seed + 1), num_classes)


def focal_loss_of(logit, is_target):
    """Lin et al. 2017, Eq. (5), of one logit in float64."""
    probability = 1 / (1 + math.exp(-logit))
    if is_target:
        return -0.25 * (1 - probability)**2 * math.log(probability)
    return -0.75 * probability**2 * math.log(1 - probability)


def giou_of(box, other):
    """Rezatofighi et al. 2019, Alg. 1, of two boxes in float64."""
    width = max(0, min(box[2], other[2]) - max(box[0], other[0]))
    height = max(0, min(box[3], other[3]) - max(box[1], other[1]))
    union = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)) - width * height
    hull = (max(box[2], other[2]) - min(box[0], other[0])) * (max(box[3], other[3]) - min(box[1], other[1]))
    return width * height / union - (hull - union) / hull


def losses_of_stage(logits, bboxes, objects, gt_index):
    """All three losses of one stage, query by query."""
    total = dict.fromkeys(LOSSES, 0.0)
    size = [WIDTH, HEIGHT, WIDTH, HEIGHT]
    for image, query in torch.cartesian_prod(*map(torch.arange, gt_index.shape)).tolist():
        index = int(gt_index[image, query])
        label = int(objects.labels[image, index]) if index >= 0 else None
        for category, logit in enumerate(logits[image, query].tolist()):
            total['loss_cls'] += 2 * focal_loss_of(logit, category == label)
        if index >= 0:
            box, target = bboxes[image, query].tolist(), objects.bboxes[image, index].tolist()
            total['loss_bbox'] += 5 * sum(abs(a - b) / side for a, b, side in zip(box, target, size, strict=True))
            total['loss_iou'] += 2 * (1 - giou_of(box, target))
    num_matched = max(1, int((gt_index >= 0).sum()))
    return {name: value / num_matched for name, value in total.items()}


@pytest.mark.parametrize('counts', [(3, 0, 5), (1, ), (20, 2), (0, 0)])
def test_losses_equal_the_sums_over_queries_by_the_number_of_matched_ones(counts):
    outputs, objects = random_case(counts)
    criterion = build_detector(small_model_cfg()).bbox_head.criterion
    losses = criterion(outputs, objects)
    gt_index = criterion.assigner.match(*outputs, objects)
    for stage, prefix in enumerate(['d0.', 'd1.', '']):
        expected = losses_of_stage(outputs.cls_scores[stage], outputs.bboxes[stage], objects, gt_index[stage])
        for name, value in expected.items():
            assert losses[prefix + name].item() == pytest.approx(value, rel=1e-5, abs=1e-6), prefix + name


def test_stages_are_divided_by_their_own_numbers_of_matched_queries():
    """The recomputation above could not tell otherwise if all stages matched equally many."""
    outputs, objects = random_case()
    gt_index = build_detector(small_model_cfg()).bbox_head.criterion.assigner.match(*outputs, objects)
    assert len(set((gt_index >= 0).flatten(1).sum(1).tolist())) > 1


@pytest.mark.parametrize('num_stages', [1, 2, 4])
def test_loss_names_are_d_and_the_stage_and_bare_for_the_last(num_stages):
    losses = trainable_detector(num_stages=num_stages).loss(make_images(), make_samples(3, 2))
    expected = {f'd{stage}.{name}' for stage in range(num_stages - 1) for name in LOSSES} | set(LOSSES)
    assert set(losses) == expected
    assert all(value.dim() == 0 and value.requires_grad for value in losses.values())


@pytest.mark.parametrize('logit', [1e4, -1e4])
def test_extreme_logits_keep_losses_and_gradients_finite(logit):
    outputs, objects = random_case()
    logits = torch.full_like(outputs.cls_scores, logit).requires_grad_()
    losses = build_detector(small_model_cfg()).bbox_head.criterion(outputs._replace(cls_scores=logits), objects)
    assert all(value.isfinite() for value in losses.values())
    assert torch.autograd.grad(sum(losses.values()), logits)[0].isfinite().all()


def test_extreme_logits_of_both_signs_keep_losses_finite():
    outputs, objects = random_case()
    losses = build_detector(small_model_cfg()).bbox_head.criterion(
        outputs._replace(cls_scores=outputs.cls_scores.sign() * 1e4), objects)
    assert all(value.isfinite() for value in losses.values())


def test_without_objects_sums_are_divided_by_one():
    outputs, objects = random_case((0, 0))
    losses = build_detector(small_model_cfg()).bbox_head.criterion(outputs, objects)
    expected = 2 * sum(focal_loss_of(logit, False) for logit in outputs.cls_scores[-1].flatten().tolist())
    assert losses['loss_cls'].item() == pytest.approx(expected, rel=1e-5)
    assert losses['loss_bbox'] == 0 and losses['loss_iou'] == 0


def test_the_size_of_the_image_before_padding_scales_the_box_loss():
    """Two images of different size in one batch: each is divided by its own."""
    outputs, objects = random_case((2, 2))
    criterion = build_detector(small_model_cfg()).bbox_head.criterion
    gt_index = criterion.assigner.match(*outputs, objects)
    doubled = objects._replace(img_whwh=objects.img_whwh * torch.tensor([[1.0], [2.0]]))
    of_image = [gt_index.clone() for _ in range(2)]
    of_image[0][:, 1], of_image[1][:, 0] = -1, -1
    for index, factor in zip(of_image, (1.0, 0.5), strict=True):
        plain, scaled = (criterion.losses(outputs, of, index)['loss_bbox'] for of in (objects, doubled))
        assert scaled.item() == pytest.approx(factor * plain.item(), rel=1e-5)
