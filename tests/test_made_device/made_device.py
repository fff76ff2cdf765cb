"""Runs the detector on a device that is made up, and writes as JSON what came of each case.

Tensors there have shapes, types and a device, and no values (torch's FakeTensorMode over its backend in Python), so
that two devices in one operation raise as they would on a GPU. A process of its own: the backend is registered once.
"""

import contextlib
import itertools
import json
import sys
from pathlib import Path
from unittest import mock

import cuda_autocast
import torch
from mmengine.logging import MMLogger
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mmdet_diffusion.heads.dynamic_diffusion_head as head_module
from mmdet_diffusion.diffusion import CosineNoiseSchedule
from mmdet_diffusion.losses import FederatedLoss
from mmdet_diffusion.ops import host_and_device, roi_align
from mmdet_diffusion.task_modules import object_padding, refine_boxes, start_noise
from mmdet_diffusion.testing import build_detector, data_sample, load_config, small_model_cfg

DEVICE = 'fakegpu'
SHAPE = (64, 96)
FEDERATED = dict(type='FederatedLoss', image_counts=[5, 6, 7], num_sampled_classes=2,
                 loss=dict(type='FocalLoss', use_sigmoid=True, loss_weight=2.0))


class Module(getattr(backend_registration, '_DummyBackendModule', object)):
    """What torch asks a backend for."""

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]


class MadeValues(TorchDispatchMode):
    """Answers what reads values, and notes the types of all tensors on the device."""

    def __init__(self, most_objects):
        super().__init__()
        self.most_objects = most_objects
        self.rounds = itertools.cycle((1, 0))  # objects without a query: one round of repair, and no more
        self.dtypes = set()
        self.by_operator = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split('::')[1]
        if name == '_local_scalar_dense':
            return self._number(args[0])
        if name == 'nonzero':
            return torch.empty((3, args[0].dim()), dtype=torch.int64, device=args[0].device)
        result = func(*args, **(kwargs or {}))
        found = {str(value.dtype).removeprefix('torch.') for value in tree_leaves(result)
                 if isinstance(value, torch.Tensor) and value.device.type == DEVICE}
        self.dtypes |= found
        self.by_operator.setdefault(name, set()).update(found)
        return result

    def _number(self, value):
        if value.dtype == torch.bool:
            return False
        if value.is_floating_point():
            return 0.5
        return self.most_objects if value.device.type == 'cpu' else next(self.rounds)


class MadeTensors(TorchFunctionMode):
    """Tensors made of numbers: the fake mode would run some for real."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.new_tensor:
            like, data = args[0], torch.tensor(args[1])
            return torch.empty(data.shape, dtype=kwargs.get('dtype') or like.dtype,
                               device=kwargs.get('device') or like.device)
        if func is torch.tensor and torch.device(kwargs.get('device') or 'cpu').type == DEVICE:
            data = torch.tensor(*args, **dict(kwargs, device='cpu'))
            return torch.empty(data.shape, dtype=data.dtype, device=DEVICE)
        return func(*args, **kwargs)


def on_device(model, mode):
    """The model with its parameters and buffers on the device."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                with mode:
                    value = torch.empty(value.shape, dtype=value.dtype, device=DEVICE)
                module._parameters[name] = nn.Parameter(value, module._parameters[name].requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                with mode:
                    module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=DEVICE)
        if isinstance(module, FederatedLoss):  # no buffer: on the host until the first loss
            module.log_weights = mode.from_tensor(module.log_weights)
    return model


def samples(counts):
    return [data_sample(torch.empty(count, 4, device=DEVICE), torch.empty(count, dtype=torch.int64, device=DEVICE),
                        SHAPE, img_id=image) for image, count in enumerate(counts)]


@contextlib.contextmanager
def made_device(cfg, most_objects):
    """The model, and what notes the types; inside, tensors are made up."""
    mode, values = FakeTensorMode(allow_non_fake_inputs=True), MadeValues(most_objects)
    model = on_device(build_detector(cfg), mode)
    with mode, values, MadeTensors():
        yield model, values


def train(counts=(2, 3), autocast=None, channels_last=False, **cfg):
    """Loss of the whole detector and its way back; says which parameters had no gradient on the device."""
    model_cfg = cfg.pop('model', None) or small_model_cfg(**cfg)
    with made_device(model_cfg, max(counts)) as (model, values):
        images = torch.empty(len(counts), 3, *SHAPE, device=DEVICE)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        precision = torch.autocast(DEVICE, autocast) if autocast else contextlib.nullcontext()
        with precision:
            losses = model.train().loss(images, samples(counts))
        leaves = tree_leaves(losses)
        sum(value.sum() for value in leaves).backward()
        lacking = [name for name, value in model.named_parameters() if value.requires_grad
                   and (value.grad is None or value.grad.device.type != DEVICE)]
        return dict(lacking=lacking, losses=sorted(losses), loss_dtypes=sorted({str(value.dtype) for value in leaves}),
                    loss_devices=sorted({value.device.type for value in leaves}), dtypes=sorted(values.dtypes),
                    gradient_dtypes=sorted({str(value.grad.dtype) for value in model.parameters()
                                            if value.grad is not None}),
                    **dtypes_of(values))


def dtypes_of(values):
    """Types that some operators gave on the device."""
    names = ('convolution', 'mm', 'addmm', 'bmm', 'native_layer_norm', '_embedding_bag', '_embedding_bag_forward_only',
             '_cdist_forward')
    return dict(operators={name: sorted(values.by_operator[name]) for name in names if name in values.by_operator})


def sample(steps, seed=None, autocast=None, **cfg):
    """From images to what goes into suppression, whose shapes depend on values."""
    cfg = small_model_cfg(**cfg)
    cfg.test_cfg.update(sampling_timesteps=steps, seed=seed)
    with made_device(cfg, 1) as (model, values), torch.no_grad():
        finished = []
        finish = mock.patch.object(head_module, 'finish_image', lambda detections, *rest: finished.append(detections))
        precision = torch.autocast(DEVICE, autocast) if autocast else contextlib.nullcontext()
        with finish, precision:
            images = torch.empty(2, 3, *SHAPE, device=DEVICE)
            model.eval().bbox_head.predict(model.extract_feat(images), samples((0, 0)))
        return dict(detections=[[[list(value.shape), str(value.dtype), value.device.type] for value in image]
                                for image in finished], dtypes=sorted(values.dtypes), **dtypes_of(values))


def with_auxiliary_head():
    model = load_config('diffusiondet_r18_fpn_1xb4-4k_shapes.py').model
    model.bbox_head.update(num_proposals=10, num_stages=2)
    return model


CASES = {
    **{f'padding {padding}': lambda padding=padding: train(box_sampler=dict(padding=padding))
       for padding in ('gaussian', 'uniform', 'full_image', 'repeat')},
    'fewer proposals than objects': lambda: train((12, 15)),
    'an image without objects': lambda: train((0, 3)),
    'no objects': lambda: train((0, 0)),
    'channels-last images': lambda: train(channels_last=True),
    'federated loss': lambda: train(criterion=dict(loss_cls=dict(FEDERATED, _delete_=True))),
    'auxiliary head': lambda: train(model=with_auxiliary_head()),
    'jitter': lambda: train(box_sampler=dict(jitter=dict(type='ObjectJitter'))),
    **{f'sampling, {steps} steps, seed {seed}': lambda steps=steps, seed=seed: sample(steps, seed)
       for steps in (1, 3) for seed in (None, 3)},
}

AUTOCAST = {
    'training in bfloat16': lambda: train(autocast=torch.bfloat16),
    'training in float16': lambda: train(autocast=torch.float16),
    'sampling in bfloat16': lambda: sample(3, autocast=torch.bfloat16),
    'sampling in float16': lambda: sample(3, autocast=torch.float16),
}


# Planted faults -------------------------------------------------------------------------------------------------------


def filled_on_the_host(values, dtype, device):
    return torch.tensor(list(values), dtype=dtype)


def noise_of_a_schedule_that_stays(self, x_start, noise, timesteps):
    share = self.alpha_bar[timesteps].view(-1, 1, 1).float()
    return share.sqrt() * x_start + (1 - share).sqrt() * noise


def sizes_on_the_host(img_metas, device):
    return torch.empty(len(img_metas), 4)


@contextlib.contextmanager
def steps_on_the_host():
    forward = head_module.TimeEmbedding.forward

    def changed(self, t):
        return forward(self, torch.empty(t.shape, dtype=t.dtype))

    with mock.patch.object(head_module.TimeEmbedding, 'forward', changed):
        yield


@contextlib.contextmanager
def image_sizes_on_the_host():
    with (mock.patch.object(object_padding, 'image_sizes', sizes_on_the_host),
          mock.patch.object(head_module, 'image_sizes', sizes_on_the_host)):
        yield


FAULTS = {
    'strides made on the host': lambda: mock.patch.object(roi_align, '_filled', filled_on_the_host),
    'schedule not moved': lambda: mock.patch.object(CosineNoiseSchedule, 'add_noise', noise_of_a_schedule_that_stays),
    'steps left on the host': steps_on_the_host,
    'image sizes on the host': image_sizes_on_the_host,
}
RUNS = {'training': train, 'sampling': lambda: sample(3)}


def seeded_noise_on_the_host():
    with mock.patch.object(start_noise, 'upload', lambda values, device: values):
        return sample(3, seed=3)


def boxes_in_half_precision():
    def rounded(bboxes, deltas):
        return refine_boxes(bboxes, deltas).to(deltas.dtype)

    with mock.patch.object(head_module, 'refine_boxes', rounded):
        return sample(3, autocast=torch.bfloat16)


def outcome(run):
    """What a case gives, or the error that it raises."""
    try:
        return dict(run(), error=None)
    except Exception as error:  # each is an outcome to be looked at
        return dict(error=type(error).__name__, message=str(error)[:2000])


def main():
    MMLogger.get_current_instance().setLevel('WARNING')  # the initialisation of each weight is not of interest
    backend_registration._setup_privateuseone_for_python_backend(DEVICE, Module())
    torch._C._set_only_lift_cpu_tensors(True)  # for torch.tensor(..., device=DEVICE)
    results = dict(cases={name: outcome(run) for name, run in CASES.items()})
    faults = {}
    for (fault, plant), (kind, run) in itertools.product(FAULTS.items(), RUNS.items()):
        with plant():
            faults[f'{fault}, {kind}'] = outcome(run)
    faults['seeded noise on the host, sampling'] = outcome(seeded_noise_on_the_host)
    results['faults'] = faults
    registered = cuda_autocast.register(DEVICE)
    results['autocast'] = {name: outcome(run) for name, run in AUTOCAST.items()}
    faults['boxes in half precision'] = outcome(boxes_in_half_precision)
    del registered
    with mock.patch.object(host_and_device, 'WITHOUT_FLOAT64', {DEVICE}):
        results['without float64'] = {name: outcome(run) for name, run in (
            ('training', train), ('sampling', lambda: sample(3)), ('seeded sampling', lambda: sample(3, seed=3)))}
    Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == '__main__':
    main()
