"""Boxes as diffusion signal whose noise has the sizes of a data set's objects.

With the frame of the paper (:class:`SignalBBoxCoder`) noise is boxes of half the image, whatever the data: few of them
meet a small object. Here each of four values is standard normal over the data set, as the noise is:

- centres, taken as even over the image: the normal quantile of c in [0, 1];
- sizes, taken as log-normal: log of sqrt(w h) and log of sqrt(w / h), less their mean, by their deviation.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from torch import Tensor, nn

from .normal_law import probability, quantile

LIMIT = 4.0  # deviations; one object in 30,000 lies outside
SMALLEST = 1e-6  # of the image; a box without area has no log


@TASK_UTILS.register_module()
class SizeBBoxCoder(nn.Module):
    """Maps boxes between pixels and the signal frame of a data set. ``measure_sizes.py`` prints the figures.

    A checkpoint keeps them, and is refused where the config has others; one of a head that was trained in the frame of
    the paper is warned of.

    Args:
        log_scale (Sequence[float]): mean and deviation of log sqrt(w h); w and h in shares of the image.
        log_aspect (Sequence[float]): mean and deviation of log sqrt(w / h).

    Raises:
        ValueError: if one is not a finite mean and a deviation above 0.
    """

    def __init__(self, *, log_scale: Sequence[float], log_aspect: Sequence[float]) -> None:
        super().__init__()
        for name, value in dict(log_scale=log_scale, log_aspect=log_aspect).items():
            if len(value) != 2 or not all(map(math.isfinite, value)) or value[1] <= 0:
                raise ValueError(f'{name} of SizeBBoxCoder must be a mean and a deviation above 0, got {value!r}; '
                                 'tools/analysis_tools/measure_sizes.py prints them for a data set')
            self.register_buffer(f'trained_{name}', torch.tensor(value, dtype=torch.float32))
        self.log_scale, self.log_aspect = tuple(log_scale), tuple(log_aspect)

    def normalized_to_signal(self, cxcywh: Tensor) -> Tensor:
        """Normalised cxcywh, shape (..., 4), to the signal frame, clamped."""
        centres = quantile(cxcywh[..., :2].clamp(0, 1))
        log_width, log_height = cxcywh[..., 2:].clamp(min=SMALLEST).log().unbind(-1)
        scale = _standardise((log_width + log_height) / 2, *self.log_scale)
        aspect = _standardise((log_width - log_height) / 2, *self.log_aspect)
        return self.clamp(torch.cat([centres, torch.stack([scale, aspect], dim=-1)], dim=-1))

    def signal_to_normalized(self, signal: Tensor) -> Tensor:
        """Signal, clamped first, to normalised cxcywh, shape (..., 4)."""
        signal = self.clamp(signal)
        centres = probability(signal[..., :2])
        scale = signal[..., 2] * self.log_scale[1] + self.log_scale[0]
        aspect = signal[..., 3] * self.log_aspect[1] + self.log_aspect[0]
        return torch.cat([centres, torch.stack([scale + aspect, scale - aspect], dim=-1).exp()], dim=-1)

    @staticmethod
    def clamp(signal: Tensor) -> Tensor:
        """Limit a signal to the range that boxes can have."""
        return signal.clamp(-LIMIT, LIMIT)

    def encode(self, bboxes: Tensor, img_whwh: Tensor) -> Tensor:
        """As :meth:`SignalBBoxCoder.encode`, signal in [-4, 4]."""
        return self.normalized_to_signal(bbox_xyxy_to_cxcywh(bboxes / img_whwh))

    def decode(self, signal: Tensor, img_whwh: Tensor) -> Tensor:
        """As :meth:`SignalBBoxCoder.decode`; a box has an area."""
        return bbox_cxcywh_to_xyxy(self.signal_to_normalized(signal)) * img_whwh

    @staticmethod
    def trained_sizes(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, tuple[float, ...]]:
        """``log_scale`` and ``log_aspect`` that a state dict was trained with; empty where it has none."""
        names = {name: f'{prefix}trained_{name}' for name in ('log_scale', 'log_aspect')}
        return {name: _rounded(state_dict[key]) for name, key in names.items() if key in state_dict}

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        for name in ('log_scale', 'log_aspect'):
            trained = state_dict.get(f'{prefix}trained_{name}')
            ours = getattr(self, name)
            if trained is None:
                continue
            # Weights in half precision keep them rounded.
            if not torch.allclose(trained.float().cpu(), torch.tensor(ours).to(trained.dtype).float(), atol=1e-4):
                raise ValueError(f'the checkpoint was trained with box_sampler.coder.{name}={_rounded(trained)}, but '
                                 f'the config has {ours}: set it to the former')
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name in ('log_scale', 'log_aspect'):  # else weights in half precision would hand on what they rounded
            getattr(self, f'trained_{name}').copy_(torch.tensor(getattr(self, name)))


def _standardise(values: Tensor, mean: float, deviation: float) -> Tensor:
    return (values - mean) / deviation


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values.tolist())
