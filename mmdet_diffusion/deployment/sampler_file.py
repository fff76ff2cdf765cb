"""``sampler.json``: what a run-time needs beside the graphs, read off a config and a model."""

from collections.abc import Sequence
from pathlib import Path

from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from torch import nn

from diffusiondet_runtime.folder import SCHEMA_VERSION
from diffusiondet_runtime.sampling import coefficients

from ..sampling_settings import SamplingSettings
from ..task_modules import SignalBBoxCoder, SizeBBoxCoder

SIZE_DIVISOR = 32  # what the graphs' sizes are multiples of
LISTED_STEPS = (1, 2, 4, 8)  # numbers of steps whose coefficients are written out
SUPPRESSION = dict(nms=('type', 'iou_threshold', 'class_agnostic', 'max_num'),
                   soft_nms=('type', 'iou_threshold', 'class_agnostic', 'max_num', 'sigma', 'min_score', 'method'))
BACKENDS = dict(cv2='opencv', pillow='pillow')


def sampler_content(config: Config, detector: nn.Module, classes: Sequence[str], checkpoint: dict[str, str]) -> dict:
    """Content of the file, without the hashes of the graphs.

    Args:
        config (Config): of the detector and its test pipeline.
        detector (nn.Module): a :class:`DiffusionDet`.
        classes (Sequence[str]): names by label.
        checkpoint (dict[str, str]): ``name`` and ``sha256``.

    Returns:
        dict: as JSON takes it; docs/deployment.md describes it.

    Raises:
        ValueError: if the test pipeline has a transform, or the sampling a setting, that the run-time lacks.
    """
    head = detector.bbox_head
    settings, schedule = head.sampling_settings(), head.box_sampler.schedule
    alpha_bar = schedule.alpha_bar.tolist()
    listed = sorted({*LISTED_STEPS, settings.sampling_timesteps})
    steps = {str(number): [step._asdict() for step in coefficients(alpha_bar, number, settings.eta)]
             for number in listed if number <= len(alpha_bar)}
    return dict(
        schema_version=SCHEMA_VERSION, checkpoint=checkpoint, config=Path(config.filename or '').stem,
        classes=list(classes), input=input_rule(config, detector),
        levels=list(head.roi_extractor.featmap_strides),
        diffusion=dict(_frame(head.box_sampler.coder), alpha_bar=alpha_bar, steps=steps),
        sampling=dict(steps=settings.sampling_timesteps, boxes=settings.num_proposals, eta=settings.eta,
                      start_noise=settings.start_noise, seed=settings.seed,
                      renewal_score_thr=settings.renewal_score_thr, ensemble=settings.ensemble),
        post_processing=post_processing(settings),
        limits=dict(size_divisor=SIZE_DIVISOR, max_steps=len(alpha_bar), **memory_limits(head)))


def _frame(coder: nn.Module) -> dict:
    """What the run-time needs to know of how boxes become signal."""
    if isinstance(coder, SizeBBoxCoder):
        return dict(sizes=dict(log_scale=list(coder.log_scale), log_aspect=list(coder.log_aspect)))
    if isinstance(coder, SignalBBoxCoder):
        return dict(signal_scale=coder.signal_scale)
    raise ValueError(f'box_sampler.coder is {type(coder).__name__}, a frame that the run-time does not know; models '
                     'with signal_scale or SizeBBoxCoder can be exported')


def post_processing(settings: SamplingSettings) -> dict:
    """What becomes of the detections of all steps. No threshold is one below every score; ``null`` is no limit."""
    score_thr = -1.0 if settings.score_thr is None else settings.score_thr
    nms = None if settings.nms is None else _suppression(dict(settings.nms))
    return dict(score_thr=score_thr, nms=nms, max_per_img=settings.best.stop,
                min_bbox_size=settings.min_bbox_size)


def _suppression(nms: dict) -> dict:
    """Of the config's, what changes results; ``split_thr`` is how mmcv saves memory."""
    nms.pop('split_thr', None)
    known = SUPPRESSION[nms.get('type', 'nms')]
    unknown = [f'{key}={value!r}' for key, value in nms.items() if key not in known]
    if unknown:
        raise ValueError(f'test_cfg.nms has {", ".join(unknown)}, which the run-time cannot repeat; it knows '
                         f'{", ".join(known)}')
    return nms


def memory_limits(head: nn.Module) -> dict[str, int]:
    """Bytes that a step takes for each box, and for each pair of boxes of a picture, in float32."""
    stage, bins = head.stages[0], head.roi_extractor.num_bins
    channels = head.roi_extractor.out_channels
    filters = stage.dynamic_conv.dynamic_layer.out_features
    # The filters and their two halves; bins before, between and after the two convolutions, with their norms.
    return dict(bytes_per_box=4 * (2 * filters + 6 * bins * channels), bytes_per_pair=4 * 2 * stage.self_attn.num_heads)


def input_rule(config: Config, detector: nn.Module) -> dict:
    """How a picture becomes the network's input.

    Raises:
        ValueError: names the transform or setting that the run-time lacks.
    """
    rule = dict(resize=None, decoder='opencv')
    for transform in get_test_pipeline_cfg(config):
        kind = transform.type.split('.')[-1]
        if kind == 'LoadImageFromFile':
            rule['decoder'] = BACKENDS.get(transform.get('imdecode_backend', 'cv2'))
            _require(rule['decoder'] and transform.get('color_type', 'color') == 'color'
                     and not transform.get('to_float32'), transform)
        elif kind == 'Resize':
            _require(rule['resize'] is None, transform)
            rule['resize'] = _resize_rule(transform)
        elif kind not in ('LoadAnnotations', 'PackDetInputs'):
            _require(False, transform)
    preprocessor = detector.data_preprocessor
    divisor = getattr(preprocessor, 'pad_size_divisor', 1)
    if divisor % SIZE_DIVISOR:
        raise ValueError(f'model.data_preprocessor.pad_size_divisor is {divisor}, and the graphs take sizes that are '
                         f'multiples of {SIZE_DIVISOR}: set it to {SIZE_DIVISOR}, and test so what is exported')
    mean, std = ([0.0] * 3, [1.0] * 3)
    if preprocessor._enable_normalize:
        mean, std = (getattr(preprocessor, name).flatten().tolist() for name in ('mean', 'std'))
    return dict(rule, mean=mean, std=std, channel_order='rgb' if preprocessor._channel_conversion else 'bgr',
                size_divisor=divisor, pad_value=preprocessor.pad_value)


def _resize_rule(transform: dict) -> dict:
    scale, factor = transform.get('scale'), transform.get('scale_factor')
    _require(factor is None and transform.get('interpolation', 'bilinear') == 'bilinear'
             and isinstance(scale, Sequence) and len(scale) == 2, transform)
    return dict(scale=list(scale), keep_ratio=bool(transform.get('keep_ratio', False)),
                interpolation=BACKENDS[transform.get('backend', 'cv2')])


def _require(holds: bool, transform: dict) -> None:
    if not holds:
        raise ValueError(f'the test pipeline has {dict(transform)}, which the run-time cannot repeat: it reads '
                         'pictures, resizes them by one bilinear Resize, normalises and pads')
