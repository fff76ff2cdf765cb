"""What the head gives and keeps, and what may be plugged into it by a config line."""

import subprocess
import sys

import pytest
import torch

from mmdet_diffusion.structures import StageOutputs
from mmdet_diffusion.task_modules import pad_objects
from mmdet_diffusion.testing import REPOSITORY, build_detector, data_sample, random_boxes, small_model_cfg

HEIGHT, WIDTH = 64, 96


def roi_extractor_cfg(kind):
    if kind == 'ours':
        return {}
    return dict(_delete_=True, type='SingleRoIExtractor', out_channels=16, featmap_strides=[4, 8, 16, 32],
                roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=2))


@pytest.fixture(scope='module')
def head():
    return build_detector(small_model_cfg(num_stages=3)).bbox_head.eval()


@pytest.fixture(scope='module')
def head_of_small_moves():
    """A trained head's boxes converge; an untrained one flings them thousands of pixels away, where a stage multiplies
    the rounding of the one before it. With a tenth of its deltas boxes stay near the image, and so does rounding."""
    head = build_detector(small_model_cfg(num_stages=3)).bbox_head.eval()
    with torch.no_grad():
        for stage in head.stages:
            stage.fc_reg.weight.mul_(0.1)
            stage.fc_reg.bias.mul_(0.1)
    return head


def make_feats(num_images=2, strides=(4, 8, 16, 32), channels=16):
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn((num_images, channels, HEIGHT // stride, WIDTH // stride), generator=generator)
        for stride in strides)


def make_bboxes(num_images=2, number=10):
    return random_boxes(num_images * number, (HEIGHT, WIDTH), torch.Generator().manual_seed(2)).view(num_images, -1, 4)


def make_images(number=2):
    return torch.randn((number, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(1))


def make_samples(number=2):
    return [
        data_sample(random_boxes(2, (HEIGHT, WIDTH), torch.Generator().manual_seed(index)), torch.tensor([0, 2]),
                    (HEIGHT, WIDTH), img_id=index) for index in range(number)
    ]


# Outputs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('num_images', 'number'), [(1, 1), (2, 10), (3, 4)])
@torch.no_grad()
def test_forward_gives_stages_images_boxes_and_classes(head, num_images, number):
    outputs = head(make_feats(num_images), make_bboxes(num_images, number), torch.arange(num_images))
    assert isinstance(outputs, StageOutputs)
    assert outputs.cls_scores.shape == (3, num_images, number, 3)
    assert outputs.bboxes.shape == (3, num_images, number, 4)
    assert outputs.cls_scores.dtype == outputs.bboxes.dtype == torch.float32
    assert outputs.cls_scores.isfinite().all() and outputs.bboxes.isfinite().all()


@torch.no_grad()
def test_forward_does_not_change_its_inputs(head):
    feats, bboxes, t = make_feats(), make_bboxes(), torch.tensor([3, 900])
    copies = [tensor.clone() for tensor in (*feats, bboxes, t)]
    head(feats, bboxes, t)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip((*feats, bboxes, t), copies, strict=True))


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other(head_of_small_moves):
    head = head_of_small_moves
    feats, bboxes, t = make_feats(), make_bboxes(), torch.tensor([3, 900])
    together = head(feats, bboxes, t)
    alone = head(tuple(level[1:] for level in feats), bboxes[1:], t[1:])
    torch.testing.assert_close(together.cls_scores[:, 1:], alone.cls_scores, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.bboxes[:, 1:], alone.bboxes, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_the_order_of_the_boxes_does_not_matter(head_of_small_moves):
    head = head_of_small_moves
    feats, bboxes, t = make_feats(), make_bboxes(), torch.tensor([3, 900])
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    plain, shuffled = head(feats, bboxes, t), head(feats, bboxes[:, order], t)
    torch.testing.assert_close(plain.bboxes[:, :, order], shuffled.bboxes, atol=1e-3, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize('training', [True, False])
def test_detector_forward_runs_without_extra_arguments(training):
    model = build_detector(small_model_cfg()).train(training)
    for outputs in (model._forward(make_images()), model(make_images(), mode='tensor')):
        assert outputs.cls_scores.shape == (2, 2, 10, 3)
        assert outputs.bboxes.shape == (2, 2, 10, 4)


def test_flops_can_be_counted():
    from mmengine.analysis import get_model_complexity_info
    model = build_detector(small_model_cfg()).eval()
    assert get_model_complexity_info(model, inputs=(make_images(1), ), show_table=False, show_arch=False)['flops'] > 0


# Between the stages ---------------------------------------------------------------------------------------------------


def recorded_look_ups(monkeypatch, head):
    """Boxes of each RoI look-up."""
    forward, seen = head.roi_extractor.forward, []

    def recording(feats):
        look_up = forward(feats)
        return lambda boxes: (seen.append(boxes), look_up(boxes))[1]

    monkeypatch.setattr(head.roi_extractor, 'forward', recording)
    return seen


def test_boxes_pass_on_detached(head, monkeypatch):
    seen = recorded_look_ups(monkeypatch, head)
    outputs = head(make_feats(), make_bboxes(), torch.tensor([3, 900]))
    assert len(seen) == 3
    assert outputs.bboxes.requires_grad
    for boxes, refined in zip(seen[1:], outputs.bboxes, strict=False):
        assert torch.equal(boxes, refined)
        assert not boxes.requires_grad


def test_the_box_loss_of_a_stage_does_not_reach_the_regressor_of_another(head):
    outputs = head(make_feats(), make_bboxes(), torch.tensor([3, 900]))
    weights = [stage.fc_reg.weight for stage in head.stages]
    for stage in range(3):
        reached = torch.autograd.grad(outputs.bboxes[stage].sum(), weights, allow_unused=True, retain_graph=True)
        # torch.stack leaves zeros instead of no gradient
        assert [grad is not None and bool(grad.abs().sum() > 0) for grad in reached] == [n == stage for n in range(3)]


def test_the_loss_of_a_stage_reaches_earlier_stages_by_the_proposal_features(head):
    outputs = head(make_feats(), make_bboxes(), torch.tensor([3, 900]))
    grad, = torch.autograd.grad(outputs.bboxes[2].sum(), [head.stages[0].norm_ffn.weight])
    assert grad.abs().sum() > 0


@torch.no_grad()
def test_proposal_features_pass_on_as_they_are_before_scale_and_shift(head):
    after_ffn, received, timed = [], [], []
    hooks = []
    for stage in head.stages:
        hooks += [
            stage.norm_ffn.register_forward_hook(lambda module, args, output: after_ffn.append(output.clone())),
            stage.register_forward_pre_hook(lambda module, args: received.append(args[1].clone())),
            stage.cls_fcs.register_forward_pre_hook(lambda module, args: timed.append(args[0].clone()))
        ]
    head(make_feats(), make_bboxes(), torch.tensor([3, 900]))
    for hook in hooks:
        hook.remove()
    for stage in range(2):
        assert torch.equal(received[stage + 1], after_ffn[stage])
        assert not torch.allclose(received[stage + 1], timed[stage], atol=1e-2)


@torch.no_grad()
def test_the_branches_see_features_scaled_by_one_plus_scale_and_shifted(head):
    stage = head.stages[0]
    seen = {}
    hooks = [
        stage.norm_ffn.register_forward_hook(lambda module, args, output: seen.update(features=output.clone())),
        stage.time_mlp.register_forward_hook(lambda module, args, output: seen.update(time=output.clone())),
        stage.cls_fcs.register_forward_pre_hook(lambda module, args: seen.update(cls=args[0].clone())),
        stage.reg_fcs.register_forward_pre_hook(lambda module, args: seen.update(reg=args[0].clone()))
    ]
    stage(torch.randn(20, 49, 16), torch.randn(2, 10, 16), torch.randn(2, 64))
    for hook in hooks:
        hook.remove()
    scale, shift = seen['time'][:, None, :16], seen['time'][:, None, 16:]
    expected = seen['features'] * (1 + scale) + shift
    torch.testing.assert_close(seen['cls'], expected)
    torch.testing.assert_close(seen['reg'], expected)


@torch.no_grad()
def test_proposal_features_start_as_the_mean_of_the_roi_feature(head):
    received = []
    hook = head.stages[0].register_forward_pre_hook(lambda module, args: received.extend(args[:2]))
    head(make_feats(), make_bboxes(), torch.tensor([3, 900]))
    hook.remove()
    torch.testing.assert_close(received[1], received[0].view(2, 10, 49, 16).mean(2))


@torch.no_grad()
def test_another_time_gives_another_result_at_every_stage(head):
    early, late = (head(make_feats(), make_bboxes(), torch.tensor([t, t])) for t in (3, 900))
    for one, other in zip(early.cls_scores, late.cls_scores, strict=True):
        assert not torch.allclose(one, other, atol=1e-2)


@torch.no_grad()
def test_each_image_has_its_own_time(head):
    feats, bboxes = make_feats(), make_bboxes()
    mixed = head(feats, bboxes, torch.tensor([3, 900]))
    early = head(feats, bboxes, torch.tensor([3, 3]))
    torch.testing.assert_close(mixed.cls_scores[:, 0], early.cls_scores[:, 0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(mixed.cls_scores[:, 1], early.cls_scores[:, 1], atol=1e-2)


@pytest.mark.parametrize('stage', [0, 1, 2])
@torch.no_grad()
def test_the_time_parameters_of_each_stage_matter_from_that_stage_on(stage):
    head = build_detector(small_model_cfg(num_stages=3)).bbox_head.eval()
    before = head(make_feats(), make_bboxes(), torch.tensor([3, 900]))
    head.stages[stage].time_mlp[1].weight.mul_(-1)
    after = head(make_feats(), make_bboxes(), torch.tensor([3, 900]))
    changed = [not torch.allclose(*pair, atol=1e-3) for pair in zip(before.bboxes, after.bboxes, strict=True)]
    assert changed == [number >= stage for number in range(3)]


@torch.no_grad()
def test_stages_share_no_weights(head):
    pointers = [parameter.data_ptr() for parameter in head.stages.parameters()]
    assert len(pointers) == len(set(pointers))


@torch.no_grad()
def test_head_runs_in_float64_and_agrees_with_float32():
    head = build_detector(small_model_cfg()).bbox_head.eval()
    t = torch.tensor([3, 900])
    single = head(make_feats(), make_bboxes(), t)
    double = head.double()(tuple(level.double() for level in make_feats()), make_bboxes().double(), t)
    assert double.cls_scores.dtype == double.bboxes.dtype == torch.float64
    torch.testing.assert_close(double.cls_scores.float(), single.cls_scores, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(double.bboxes.float(), single.bboxes, atol=1e-2, rtol=1e-3)


def test_every_float_of_the_float64_head_is_float64():
    head = build_detector(small_model_cfg()).bbox_head.eval().double()
    floats = set()
    for module in head.modules():
        module.register_forward_hook(
            lambda module, args, output: floats.update(
                value.dtype for value in (*args, output) if torch.is_tensor(value) and value.is_floating_point()))
    head(tuple(level.double() for level in make_feats()), make_bboxes().double(), torch.tensor([3, 900]))
    assert floats == {torch.float64}


@pytest.mark.parametrize('changed', ['features', 'boxes', 'time', 'deltas'])
@torch.no_grad()
def test_digits_that_float32_would_lose_count_in_float64(changed):
    """A value in float32 in between would swallow a change of 1e-10, without a trace in the type of the result."""
    head = build_detector(small_model_cfg()).bbox_head.eval().double()
    feats, bboxes = tuple(level.double() for level in make_feats()), make_bboxes().double()
    t = torch.tensor([3, 900], dtype=torch.float64)
    before = head(feats, bboxes, t).bboxes[-1]
    if changed == 'deltas':
        head.stages[-1].fc_reg.bias.add_(1e-10)
    after = head(
        tuple(level + 1e-10 * (changed == 'features') for level in feats), bboxes + 1e-10 * (changed == 'boxes'),
        t + 1e-10 * (changed == 'time')).bboxes[-1]
    change = (after - before).abs()
    assert (change > 0).float().mean() > 0.9
    assert change.median() < 1e-7


# Parts that can be exchanged ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_outputs_of_the_neck_past_the_last_stride_are_ignored(head):
    feats, bboxes, t = make_feats(), make_bboxes(), torch.tensor([3, 900])
    extra = torch.full((2, 16, 1, 2), float('nan'))
    plain, more = head(feats, bboxes, t), head((*feats, extra), bboxes, t)
    assert torch.equal(plain.bboxes, more.bboxes) and torch.equal(plain.cls_scores, more.cls_scores)


@pytest.mark.parametrize('extractor', ['ours', 'stock'])
def test_a_neck_of_five_outputs_trains_and_predicts_as_one_of_four(extractor):
    images, samples = make_images(), make_samples()
    results, losses = [], []
    for num_outs in (4, 5):
        cfg = small_model_cfg(roi_extractor=roi_extractor_cfg(extractor))
        cfg.neck.num_outs = num_outs
        cfg.test_cfg.seed = 0
        model = build_detector(cfg).eval()
        results.append([sample.pred_instances.bboxes for sample in model.predict(images, samples)])
        torch.manual_seed(0)
        losses.append(model.loss(images, samples))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name])


@pytest.mark.parametrize('extractor', ['ours', 'stock'])
def test_a_neck_of_three_outputs_trains_and_predicts(extractor):
    cfg = small_model_cfg(roi_extractor=roi_extractor_cfg(extractor))
    cfg.backbone.out_indices = (1, 2, 3)
    cfg.neck.update(in_channels=[8, 16, 32], num_outs=3)
    cfg.bbox_head.roi_extractor.featmap_strides = [8, 16, 32]
    model = build_detector(cfg)
    losses = model.loss(make_images(), make_samples())
    assert all(value.isfinite() for value in losses.values())
    for sample in model.eval().predict(make_images(), make_samples()):
        assert len(sample.pred_instances.bboxes) and sample.pred_instances.bboxes.isfinite().all()


def test_a_neck_with_fewer_outputs_than_strides_is_refused_with_both_numbers():
    cfg = small_model_cfg()
    cfg.backbone.out_indices = (1, 2, 3)
    cfg.neck.update(in_channels=[8, 16, 32], num_outs=3)
    with pytest.raises(ValueError, match='(3.*featmap_strides.*4)|(featmap_strides.*4.*3)'):
        build_detector(cfg)


@torch.no_grad()
@pytest.mark.parametrize('scale', [1.0, 2.5])
def test_the_stock_extractor_by_one_config_line_gives_equal_results(scale):
    """Stages are compared one by one: an untrained network multiplies the rounding of the one before it."""
    ours = build_detector(small_model_cfg(num_stages=1)).bbox_head.eval()
    stock = build_detector(small_model_cfg(num_stages=1, roi_extractor=roi_extractor_cfg('stock'))).bbox_head.eval()
    assert ours.state_dict().keys() == stock.state_dict().keys()
    bboxes, t = make_bboxes() * scale - 5, torch.tensor([3, 900])  # some of them beyond the image
    one, other = ours(make_feats(), bboxes, t), stock(make_feats(), bboxes, t)
    torch.testing.assert_close(one.cls_scores, other.cls_scores, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.bboxes, other.bboxes, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_stock_extractor_gives_equal_roi_features():
    cfgs = [small_model_cfg(), small_model_cfg(roi_extractor=roi_extractor_cfg('stock'))]
    ours, stock = (build_detector(cfg).bbox_head.roi_extractor(make_feats())(make_bboxes()) for cfg in cfgs)
    assert ours.shape == stock.shape == (20, 49, 16)
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)


def test_the_stock_extractor_gives_equal_gradients():
    gradients = []
    for extractor in ('ours', 'stock'):
        head = build_detector(small_model_cfg(num_stages=1, roi_extractor=roi_extractor_cfg(extractor))).bbox_head
        feats = tuple(level.requires_grad_() for level in make_feats())
        outputs = head(feats, make_bboxes(), torch.tensor([3, 900]))
        losses = head.criterion(outputs, pad_objects(make_samples(), 3))
        gradients.append(torch.autograd.grad(sum(losses.values()), feats))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('autocast', [False, True])
def test_the_stock_extractor_trains(autocast):
    model = build_detector(small_model_cfg(roi_extractor=roi_extractor_cfg('stock')))
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        losses = model.loss(make_images(), make_samples())
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(parameter.grad.isfinite().all() for parameter in model.bbox_head.parameters())


# Initialisation -------------------------------------------------------------------------------------------------------


def test_init_cfg_of_the_head_overrides_the_time_embedding():
    constant = dict(type='Constant', layer='Linear', val=0.25)
    head = build_detector(small_model_cfg(init_cfg=constant)).bbox_head
    assert all((layer.weight == 0.25).all() for layer in head.time_embedding.mlp if isinstance(layer, torch.nn.Linear))


def test_pretrained_weights_of_the_head_are_those_it_starts_with(tmp_path):
    trained = build_detector(small_model_cfg(), seed=1).bbox_head.state_dict()
    torch.save(trained, tmp_path / 'head.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'head.pth'))
    head = build_detector(small_model_cfg(init_cfg=pretrained)).bbox_head
    assert all(torch.equal(value, trained[name]) for name, value in head.state_dict().items())


@pytest.mark.filterwarnings('ignore:init_weights')
def test_initialising_twice_draws_no_second_time():
    head = build_detector(small_model_cfg()).bbox_head
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


# What it does not need ------------------------------------------------------------------------------------------------


WITHOUT_TORCHVISION = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'torchvision':
            raise ModuleNotFoundError('No module named torchvision', name=name)

sys.meta_path.insert(0, Blocked())
import torch
from mmdet_diffusion.testing import build_detector, data_sample, small_model_cfg
model = build_detector(small_model_cfg())
sample = data_sample(torch.tensor([[5.0, 5, 40, 40]]), torch.tensor([1]), (64, 96))
sum(model.loss(torch.randn(1, 3, 64, 96), [sample]).values()).backward()
model.eval().predict(torch.randn(1, 3, 64, 96), [sample])
assert not [name for name in sys.modules if name.split('.')[0] == 'torchvision']
"""


def test_training_and_predicting_need_no_torchvision():
    done = subprocess.run([sys.executable, '-c', WITHOUT_TORCHVISION], cwd=REPOSITORY, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(('part', 'values'), [
    ('stage', dict(num_attn_heads=0)), ('stage', dict(feedforward_channels=0)), ('stage', dict(dynamic_dim=2.5)),
    ('stage', dict(num_reg_fcs=-1)), ('stage', dict(num_cls_fcs='1')),
    ('criterion', dict(assigner=dict(num_candidates=2.5))),
])
def test_a_wrong_number_in_a_part_is_named_when_the_model_is_built(part, values):
    name = next(iter(values.get('assigner', values)))
    with pytest.raises(ValueError, match=name):
        build_detector(small_model_cfg(**{part: values}))


@pytest.mark.parametrize('prior_prob', [0.0, 1.0, '0.01', None])
def test_a_wrong_prior_is_named_when_the_model_is_built(prior_prob):
    with pytest.raises(ValueError, match='prior_prob'):
        build_detector(small_model_cfg(prior_prob=prior_prob))
