"""Writes an exported folder: graphs and ``sampler.json``."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusiondet_runtime.folder import FEATURES, REFINE, SAMPLER, sha256

from ..roi_extractors import PyramidRoIExtractor
from ..task_modules import SizeBBoxCoder
from .graphs import FeatureGraph, RefinementGraph, UnrolledGraph
from .tracing import export_graph

UNROLLED = 'unrolled.onnx'
EXAMPLE_SIZE = (160, 224)  # height and width of the images that are traced
EXAMPLE_BATCH, EXAMPLE_BOXES = 2, 12
DETECTIONS = ('bboxes', 'scores', 'labels')


def refuse_unexportable(detector: nn.Module, unrolled: tuple[int, int] | None = None) -> None:
    """Stop where a part has no form in ONNX.

    Args:
        detector (nn.Module): a :class:`DiffusionDet`.
        unrolled (tuple[int, int] | None): steps and boxes of a third graph.

    Raises:
        ValueError: names the part and the cure.
    """
    extractor = detector.bbox_head.roi_extractor
    if not isinstance(extractor, PyramidRoIExtractor):
        raise ValueError(f'the roi_extractor is a {type(extractor.extractor).__name__}, which is not exported; give '
                         "the config roi_extractor.type='PyramidRoIExtractor', which takes the same weights")
    if unrolled is None:
        return
    sampler = detector.bbox_head.box_sampler
    if isinstance(sampler.coder, SizeBBoxCoder):
        raise ValueError('the unrolled graph cannot hold box_sampler.coder=SizeBBoxCoder: ONNX has no quantile of the '
                         'normal law; leave out --unrolled, the run-time computes it')
    if unrolled[0] > sampler.num_train_timesteps:
        raise ValueError(f'the unrolled graph cannot have {unrolled[0]} steps: the model was trained with '
                         f'{sampler.num_train_timesteps}')


def write_export(detector: nn.Module, folder: Path, sampler: dict, unrolled: tuple[int, int] | None = None) -> None:
    """Write graphs and ``sampler.json``.

    Args:
        detector (nn.Module): a :class:`DiffusionDet` on the CPU, in float32.
        folder (Path): there and empty.
        sampler (dict): of :func:`sampler_content`.
        unrolled (tuple[int, int] | None): steps and boxes of a third graph that holds the whole process.
    """
    refuse_unexportable(detector, unrolled)
    detector.eval()
    metadata = {'mmdet_diffusion.sampler': json.dumps(sampler)}
    extractor = detector.bbox_head.roi_extractor
    was, extractor.implementation = extractor.implementation, 'gathered'
    try:
        write_features_and_refinement(detector, folder, metadata)
        if unrolled is not None:
            write_unrolled(detector, folder, metadata, *unrolled)
    finally:
        extractor.implementation = was
    write_sampler(folder, sampler)


def write_sampler(folder: Path, sampler: dict) -> None:
    """Write ``sampler.json`` with the hashes of the graphs beside it."""
    files = {file.name: sha256(file) for file in sorted(folder.glob('*.onnx'))}
    (folder / SAMPLER).write_text(json.dumps(dict(sampler, files=files), indent=1) + '\n', encoding='utf-8')


def write_features_and_refinement(detector: nn.Module, folder: Path, metadata: dict[str, str]) -> None:
    """The two graphs, with the loop over steps outside."""
    head = detector.bbox_head
    names = [f'level{index}' for index in range(head.roi_extractor.num_inputs)]
    images = example_images()
    levels = {name: {0: 'batch', 2: f'height_{name}', 3: f'width_{name}'} for name in names}
    of_images = dict(images={0: 'batch', 2: 'height', 3: 'width'})
    export_graph(FeatureGraph(detector), [images], folder / FEATURES, input_names=['images'], output_names=names,
                 dynamic=of_images | levels, roi_extractor=head.roi_extractor, metadata=metadata)
    with torch.no_grad():
        features = FeatureGraph(detector).eval()(images)
    height, width = EXAMPLE_SIZE
    bboxes = torch.rand(EXAMPLE_BATCH, EXAMPLE_BOXES, 4) * torch.tensor([width, height, width, height]) / 2
    bboxes[..., 2:] += bboxes[..., :2]
    per_box = {0: 'batch', 1: 'boxes'}
    export_graph(RefinementGraph(head), [*features, bboxes, torch.arange(EXAMPLE_BATCH)], folder / REFINE,
                 input_names=[*names, 'bboxes', 't'], output_names=['logits', 'refined_bboxes'],
                 dynamic=levels | dict(bboxes=per_box, t={0: 'batch'}, logits=per_box, refined_bboxes=per_box),
                 roi_extractor=head.roi_extractor, metadata=metadata)


def write_unrolled(detector: nn.Module, folder: Path, metadata: dict[str, str], steps: int, boxes: int) -> None:
    """The third graph: steps and boxes are fixed, batch, height and width are not."""
    settings = detector.bbox_head.sampling_settings()._replace(sampling_timesteps=steps, num_proposals=boxes)
    graph = UnrolledGraph(detector, settings)
    height, width = EXAMPLE_SIZE
    noise = torch.randn(graph.num_draws, EXAMPLE_BATCH, boxes, 4)
    whwh = torch.tensor([[width, height, width, height]] * EXAMPLE_BATCH, dtype=torch.float32)
    dynamic = dict(images={0: 'batch', 2: 'height', 3: 'width'}, noise={1: 'batch'}, img_whwh={0: 'batch'})
    export_graph(graph, [example_images(), noise, whwh], folder / UNROLLED, input_names=list(dynamic),
                 output_names=DETECTIONS, dynamic=dynamic | {name: {0: 'batch'} for name in DETECTIONS},
                 roi_extractor=detector.bbox_head.roi_extractor, metadata=metadata)


def example_images() -> Tensor:
    """Images to trace with."""
    return torch.rand(EXAMPLE_BATCH, 3, *EXAMPLE_SIZE)
