"""Testing in half precision: what runs in it, what stays in float32, which devices refuse it, and training on a CPU."""

import copy
import platform

import pytest
import torch
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.registry import OPTIM_WRAPPERS
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData
from torch.utils.checkpoint import checkpoint

from mmdet_diffusion import half_precision
from mmdet_diffusion.layers.time_embedding import sinusoidal_embedding
from mmdet_diffusion.testing import build_detector, data_sample, small_model_cfg

SHAPE = (64, 96)
CPU = torch.device('cpu')


@pytest.fixture
def any_type(monkeypatch):
    """Every device has every type: torch computes them on any CPU, if slowly."""
    monkeypatch.setattr(half_precision, 'missing_support', lambda device, dtype: None)


def detector(**cfg):
    model_cfg = small_model_cfg()
    model_cfg.update(cfg)
    return build_detector(model_cfg).eval()


def samples(number=2):
    return [data_sample(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), SHAPE, img_id=index)
            for index in range(number)]


def images(number=2):
    return torch.randn((number, 3, *SHAPE), generator=torch.Generator().manual_seed(1))


def watch(module, seen):
    module.register_forward_hook(lambda module, args, output: seen.append(output.dtype))


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('name', ['bfloat16', 'float16'])
def test_convolutions_and_products_run_in_the_type_and_detections_are_float32(any_type, name, channels_last):
    model = detector(test_dtype=name, channels_last=channels_last)
    model.bbox_head.test_cfg = dict(seed=0, sampling_timesteps=2)
    convolutions, products = [], []
    watch(model.backbone.conv1, convolutions)
    watch(model.bbox_head.stages[0].dynamic_conv.fc, products)
    results = model.predict(images(), samples())
    dtype = getattr(torch, name)
    assert convolutions == [dtype] and products == [dtype] * 2
    for result in results:
        assert len(result.pred_instances.scores)
        assert result.pred_instances.bboxes.dtype == result.pred_instances.scores.dtype == torch.float32


def test_noise_boxes_looked_up_and_signals_are_float32(any_type, monkeypatch):
    model = detector(test_dtype='bfloat16')
    head, seen = model.bbox_head, []
    head.test_cfg = dict(sampling_timesteps=3)
    for part, name in ((head.box_sampler, 'decode'), (head.box_sampler, 'denoise'), (head.box_sampler, 'renew')):
        method = getattr(part, name)
        monkeypatch.setattr(part, name, lambda *args, method=method: seen.extend(
            value.dtype for value in args if isinstance(value, torch.Tensor)) or method(*args))
    forward = head.roi_extractor.forward
    monkeypatch.setattr(head.roi_extractor, 'forward', lambda feats: lambda boxes: (
        seen.append(boxes.dtype), forward(feats)(boxes))[1])
    model.predict(images(), samples())
    assert len(seen) > 20 and set(seen) == {torch.float32}


def test_detections_are_close_to_those_in_float32(any_type):
    exact, rough = detector(), detector(test_dtype='bfloat16')
    for model in (exact, rough):
        model.bbox_head.test_cfg = dict(seed=0, nms=None)
    one, other = (model.predict(images(), samples())[0].pred_instances for model in (exact, rough))
    torch.testing.assert_close(one.scores.sort()[0], other.scores.sort()[0], atol=0.01, rtol=0)
    assert not torch.equal(one.scores, other.scores)


def test_nothing_changes_without_the_setting():
    one, other = detector(), detector(test_dtype=None)
    for model in (one, other):
        model.bbox_head.test_cfg = dict(seed=0)
    assert torch.equal(*(model.predict(images(), samples())[0].pred_instances.bboxes for model in (one, other)))


def test_test_time_augmentation_runs_in_the_type(any_type):
    seen = []
    model = detector(test_dtype='bfloat16')
    watch(model.backbone.conv1, seen)
    augmented = DetTTAModel(tta_cfg=ConfigDict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=10), module=model)
    batch = samples(1)
    for sample in batch:
        sample.set_metainfo(dict(flip=False, flip_direction=None))
    data = [dict(inputs=[torch.zeros((3, *SHAPE), dtype=torch.uint8)], data_samples=batch) for _ in range(2)]
    results = augmented.test_step(dict(inputs=[item['inputs'] for item in data],
                                       data_samples=[item['data_samples'] for item in data]))
    assert len(results) == 1 and seen == [torch.bfloat16] * 2


@pytest.mark.parametrize('name', ['float32', 'half', 16, ''])
def test_an_unknown_type_is_refused_when_the_model_is_built(name):
    with pytest.raises(ValueError, match='model.test_dtype must be one of float16, bfloat16'):
        detector(test_dtype=name)


@pytest.mark.parametrize('mode', ['loss', 'predict'])
def test_a_device_without_the_type_says_so_at_the_first_batch(monkeypatch, mode):
    monkeypatch.setattr(half_precision, 'missing_support',
                        lambda device, dtype: 'it has none' if dtype is torch.bfloat16 else None)
    model = detector(test_dtype='bfloat16')
    with pytest.raises(RuntimeError, match='model.test_dtype is bfloat16, but it has none. Cure: float16 or leave it '
                                           'out for float32'):
        getattr(model, mode)(images(), samples())


def test_an_old_gpu_is_refused_by_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'Tesla T4')
    gpu = torch.device('cuda', 0)
    assert 'Tesla T4' in half_precision.missing_support(gpu, torch.bfloat16)
    assert half_precision.missing_support(gpu, torch.float16) is None
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (8, 0))
    assert half_precision.missing_support(gpu, torch.bfloat16) is None


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('supported', [True, False])
def test_a_cpu_is_asked_what_onednn_runs_there(monkeypatch, dtype, supported):
    probe = f'_is_mkldnn_{"bf16" if dtype is torch.bfloat16 else "fp16"}_supported'
    monkeypatch.setattr(torch.ops.mkldnn, probe, lambda: supported)
    assert (half_precision.missing_support(CPU, dtype) is None) == supported


@pytest.mark.skipif(platform.machine() != 'x86_64' or not hasattr(torch.cpu, 'get_capabilities'),
                    reason='torch names the instructions of x86-64 only, since 2.10')
def test_the_answer_fits_the_instructions_of_this_cpu():
    instructions = torch.cpu.get_capabilities()
    has_them = instructions['avx512_f'] or instructions['avx_ne_convert']
    assert (half_precision.missing_support(CPU, torch.bfloat16) is None) == has_them


def test_other_devices_are_refused():
    assert "'mps'" in half_precision.missing_support(torch.device('mps'), torch.bfloat16)


# A model whose weights are in half precision --------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['bfloat16', 'float16'])
def test_a_model_in_half_precision_detects_without_autocast(name):
    exact, rough = detector(), detector().to(getattr(torch, name))
    for model in (exact, rough):
        model.bbox_head.test_cfg = dict(seed=0, nms=None, sampling_timesteps=2)
    one = exact.predict(images(), samples())[0].pred_instances
    other = rough.predict(images().to(getattr(torch, name)), samples())[0].pred_instances
    assert other.bboxes.dtype == other.scores.dtype == torch.float32
    torch.testing.assert_close(one.scores.sort()[0], other.scores.sort()[0], atol=0.01, rtol=0)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_the_embedding_of_a_step_is_rounded_once(dtype):
    t = torch.arange(0, 1000, 37)
    exact = sinusoidal_embedding(t, 256, torch.float64)
    assert (sinusoidal_embedding(t, 256, dtype).double() - exact).abs().max() <= torch.finfo(dtype).eps


# Training -------------------------------------------------------------------------------------------------------------


def optim_wrapper(model, **cfg):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return OPTIM_WRAPPERS.build(dict(cfg, type='AutocastOptimWrapper', optimizer=optimizer))


def test_a_training_step_on_a_cpu_computes_in_bfloat16_and_keeps_float32_weights(any_type):
    model = detector().train()
    seen = []
    watch(model.backbone.conv1, seen)
    wrapper = optim_wrapper(model, clip_grad=dict(max_norm=1.0))
    before = model.bbox_head.stages[0].fc_cls.weight.clone()
    batch = samples()
    losses = model.train_step(dict(inputs=[torch.zeros((3, *SHAPE), dtype=torch.uint8)] * 2, data_samples=batch),
                              wrapper)
    assert seen == [torch.bfloat16] and torch.isfinite(losses['loss'])
    weight = model.bbox_head.stages[0].fc_cls.weight
    assert weight.dtype == torch.float32 and not torch.equal(weight, before)
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} <= {torch.float32}


def test_attention_stays_in_float32_on_a_cpu(any_type):
    model = detector().train()
    seen = []
    model.bbox_head.stages[0].self_attn.register_forward_hook(lambda module, args, output: seen.append(output[0].dtype))
    model.train_step(dict(inputs=[torch.zeros((3, *SHAPE), dtype=torch.uint8)] * 2, data_samples=samples()),
                     optim_wrapper(model))
    assert seen == [torch.float32]


@pytest.mark.parametrize(('channels', 'groups'), [(1, 1), (6, 1), (6, 3), (6, 6)])
def test_convolutions_are_in_float32_where_they_are_depthwise(any_type, channels, groups):
    is_depthwise = channels == groups > 1
    convolution = torch.nn.Conv2d(channels, 2 * channels, 3, padding=1, stride=2, groups=groups)
    image = torch.randn(2, channels, 9, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = torch.autograd.grad(convolution(image).square().sum(), [image, *convolution.parameters()])
    wrapper = optim_wrapper(convolution)
    with wrapper.optim_context(convolution):
        output = convolution(image)
        half = convolution(image.bfloat16())
    gradients = torch.autograd.grad(output.float().square().sum(), [image, *convolution.parameters()])
    assert output.dtype == half.dtype == (torch.float32 if is_depthwise else torch.bfloat16)
    assert all(map(torch.equal, gradients, expected)) == is_depthwise
    assert torch.equal(convolution(image), copy.deepcopy(convolution)(image))  # as ever outside autocast


@pytest.mark.parametrize('use_reentrant', [False, True])
def test_a_checkpointed_depthwise_convolution_is_computed_again_in_float32(any_type, use_reentrant):
    convolution = torch.nn.Conv2d(6, 6, 3, groups=6)
    image = torch.randn(2, 6, 9, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = torch.autograd.grad(convolution(image).square().sum(), list(convolution.parameters()))
    with optim_wrapper(convolution).optim_context(convolution):
        output = checkpoint(convolution, image, use_reentrant=use_reentrant)
    output.square().sum().backward()
    assert all(map(torch.equal, [parameter.grad for parameter in convolution.parameters()], expected))


def test_the_wrapper_comes_from_one_line_of_a_config(any_type):
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))))
    cfg.merge_from_dict({'optim_wrapper.type': 'AutocastOptimWrapper'})
    model = detector()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    with wrapper.optim_context(model):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_losses_and_gradients_under_autocast_are_finite(dtype):
    model = detector().train()
    batch = samples()
    for sample in batch:
        sample.gt_instances = InstanceData(bboxes=torch.tensor([[4.0, 4.0, 40.0, 30.0]]), labels=torch.tensor([1]))
    with torch.autocast('cpu', dtype):
        losses = model.loss(images(), batch)
    sum(losses.values()).backward()
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(('dtype', 'message'), [('float16', 'losses are scaled'), ('int8', 'must be one of')])
def test_types_that_cannot_be_trained_in_are_refused(dtype, message):
    with pytest.raises(ValueError, match=message):
        optim_wrapper(detector(), dtype=dtype)


def test_training_where_the_device_lacks_the_type_stops_at_the_first_step(monkeypatch):
    monkeypatch.setattr(half_precision, 'missing_support', lambda device, dtype: 'it has none')
    model = detector()
    wrapper = optim_wrapper(model)
    with pytest.raises(RuntimeError, match='optim_wrapper.dtype is bfloat16'), wrapper.optim_context(model):
        pass
