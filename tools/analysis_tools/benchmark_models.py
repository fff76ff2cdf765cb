"""What the benchmarks run: a config's model with either RoI extractor, and made inputs."""

import mmdet_diffusion  # noqa: F401  isort: skip  first: it makes the operators of mmcv available
import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from mmdet_diffusion.structures import PaddedObjects, StageOutputs
from mmdet_diffusion.task_modules import pad_objects
from mmdet_diffusion.testing import data_sample

SMALLEST_OBJECT = 16  # pixels
BOX_MOVES = 0.01  # share of the initial weights that deltas keep: untrained ones would drive boxes off in six stages


class Sizes(NamedTuple):
    """Sizes of all measurements.

    Attributes:
        image (tuple[int, int]): height and width for RoI features, head and inference.
        training_image (tuple[int, int]): height and width in training.
        training_objects (tuple[int, ...]): objects of each image of a training step.
        matching_images (int): images whose matching is measured.
        matching_objects (int): objects of the fullest of them; the emptiest has one.
        boxes (int): N.
        steps (int): sampling steps where there are several.
    """

    image: tuple[int, int] = (800, 1216)
    training_image: tuple[int, int] = (512, 768)
    training_objects: tuple[int, ...] = (10, 15)
    matching_images: int = 16
    matching_objects: int = 60
    boxes: int = 500
    steps: int = 4


QUICK = Sizes((96, 128), (64, 96), (2, 3), 4, 8, 30, 2)


def build_model(config: Config, boxes: int, *, stock: bool) -> nn.Module:
    """A config's model with made weights that leave boxes nearly where they are.

    Args:
        config (Config): of a DiffusionDet whose RoI extractor is ``PyramidRoIExtractor``.
        boxes (int): N in training, and in testing unless ``test_cfg`` says otherwise.
        stock (bool): with mmdet's ``SingleRoIExtractor`` of the same sizes instead; the weights are the same.

    Returns:
        nn.Module: initialised, on the host.

    Raises:
        ValueError: if the config's RoI extractor is another one.
    """
    MMLogger.get_current_instance().setLevel('WARNING')  # the initialisation of each weight is not of interest
    register_all_modules(init_default_scope=True)
    cfg = copy.deepcopy(config.model)
    cfg.backbone.init_cfg = None
    cfg.bbox_head.num_proposals = boxes
    if cfg.bbox_head.roi_extractor.type != 'PyramidRoIExtractor':
        raise ValueError('roi_extractor of the config must be PyramidRoIExtractor, to be compared with that of mmdet, '
                         f'got {cfg.bbox_head.roi_extractor.type}')
    if stock:
        cfg.bbox_head.roi_extractor = _stock_extractor(cfg.bbox_head.roi_extractor)
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    for stage in model.bbox_head.stages:
        nn.init.zeros_(stage.fc_reg.bias)
        stage.fc_reg.weight.data.mul_(BOX_MOVES)
    return model


def _stock_extractor(cfg: dict) -> dict:
    ours = MODELS.build(cfg)
    return dict(type='SingleRoIExtractor', featmap_strides=list(ours.featmap_strides), out_channels=ours.out_channels,
                finest_scale=ours.finest_scale,
                roi_layer=dict(type='RoIAlign', output_size=ours.output_size, sampling_ratio=ours.sampling_ratio))


def object_boxes(number: int, img_shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Boxes of the sizes of objects, on every level of the pyramid: sides log-uniform from 16 pixels to the image's.

    Args:
        number (int): M.
        img_shape (tuple[int, int]): height and width in pixels.
        generator (torch.Generator): source of the draws.

    Returns:
        Tensor: absolute xyxy in pixels, shape (M, 4), within the image.
    """
    whole = torch.tensor([img_shape[1], img_shape[0]], dtype=torch.float32)
    scale = torch.rand((number, 1), generator=generator) * math.log(0.9 * min(img_shape) / SMALLEST_OBJECT)
    shape = torch.rand((number, 1), generator=generator) - 0.5  # log of width over height, halved
    sides = torch.minimum(SMALLEST_OBJECT * scale.exp() * torch.cat([shape.exp(), (-shape).exp()], dim=1), whole)
    corner = torch.rand((number, 2), generator=generator) * (whole - sides)
    return torch.cat([corner, corner + sides], dim=1)


def pyramid(head: nn.Module, num_images: int, img_shape: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
    """Random feature maps for a head with our RoI extractor, each (B, F, H_l, W_l)."""
    extractor = head.roi_extractor
    generator = torch.Generator().manual_seed(1)
    shapes = [(num_images, extractor.out_channels, *(math.ceil(side / stride) for side in img_shape))
              for stride in extractor.featmap_strides]
    return tuple(torch.randn(shape, generator=generator).to(device) for shape in shapes)


def labelled_image(num_objects: int, num_classes: int, img_shape: tuple[int, int], seed: int) -> DetDataSample:
    """Objects of one image."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_objects, ), generator=generator)
    return data_sample(object_boxes(num_objects, img_shape, generator), labels, img_shape, img_id=seed)


def batch(counts: tuple[int, ...], num_classes: int, img_shape: tuple[int, int]) -> dict:
    """Random images as a data loader gives them; ``counts`` objects on each."""
    generator = torch.Generator().manual_seed(2)
    pixels = [torch.randint(256, (3, *img_shape), generator=generator, dtype=torch.uint8) for _ in counts]
    samples = [labelled_image(count, num_classes, img_shape, seed) for seed, count in enumerate(counts)]
    return dict(inputs=pixels, data_samples=samples)


def training_step(model: nn.Module, config: Config, sizes: Sizes, *, optimise: bool = True) -> Callable[[], object]:
    """A training step of the config on equal draws at each call; with clipping and optimiser unless told otherwise."""
    wrapper = build_optim_wrapper(model.train(), config.optim_wrapper)
    if not optimise:
        wrapper.step = lambda: None  # the gradients are dropped after it as ever
    data = batch(sizes.training_objects, model.bbox_head.num_classes, sizes.training_image)

    def step() -> None:
        torch.manual_seed(3)
        model.train_step(data, wrapper)

    return step


def matching_problem(head: nn.Module, counts: tuple[int, ...], boxes: int, img_shape: tuple[int, int],
                     device: torch.device) -> tuple[StageOutputs, PaddedObjects]:
    """Stages' outputs whose boxes lie half around objects and half anywhere, with their objects."""
    generator = torch.Generator().manual_seed(4)
    samples = [labelled_image(count, head.num_classes, img_shape, seed) for seed, count in enumerate(counts)]
    objects = pad_objects(samples, head.num_classes)
    shape = (len(head.stages), len(counts), boxes)
    bboxes = object_boxes(math.prod(shape), img_shape, generator).view(*shape, 4)
    owner = torch.arange(boxes) % torch.tensor(counts)[:, None]
    near = objects.bboxes.gather(1, owner[..., None].expand(-1, -1, 4))
    near = near + torch.randn(bboxes.shape, generator=generator) * 0.1 * (near[..., 2:] - near[..., :2]).repeat(1, 1, 2)
    bboxes = torch.where((torch.arange(boxes) % 2 == 0)[:, None], near, bboxes)
    logits = torch.randn((*shape, head.num_classes), generator=generator) - 3
    outputs = StageOutputs(*(value.to(device).requires_grad_() for value in (logits, bboxes)))
    return outputs, PaddedObjects(*(value.to(device) for value in objects))


def sampling(head: nn.Module, features: tuple[Tensor, ...], boxes: int, steps: int,
             img_shape: tuple[int, int]) -> Callable[[], object]:
    """A sampling run of a head whose every draw gives boxes of the sizes of objects, so that all levels are used."""
    num_images, device = len(features[0]), features[0].device
    height, width = img_shape
    whwh = torch.tensor([[width, height, width, height]], dtype=torch.float32).expand(num_images, -1)
    bboxes = object_boxes(num_images * boxes, img_shape, torch.Generator().manual_seed(5)).view(num_images, boxes, 4)
    signal = head.box_sampler.coder.encode(bboxes, whwh[:, None]).to(device)
    whwh = whwh.to(device)

    @torch.no_grad()
    def run() -> object:
        head.test_cfg = dict(sampling_timesteps=steps, num_proposals=boxes)
        return head.sample(features, whwh, head.sampling_settings(), lambda number: signal)

    return run


def losses(head: nn.Module, outputs: StageOutputs, objects: PaddedObjects) -> Callable[[], object]:
    """The criterion and its backward pass."""

    def run() -> None:
        values = head.criterion(outputs, objects)
        torch.autograd.grad(torch.stack(list(values.values())).sum(), list(outputs))

    return run


def object_counts(images: int, largest: int) -> tuple[int, ...]:
    """From one to ``largest`` objects, evenly spread over the images."""
    return tuple(round(1 + (largest - 1) * index / max(1, images - 1)) for index in range(images))
