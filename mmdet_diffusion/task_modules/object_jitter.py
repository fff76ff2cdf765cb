"""Training boxes near the objects, by noise in the objects' own sizes. Li et al. 2022 (DN-DETR), arXiv:2203.01305.

Noise of the diffusion moves a box by shares of the image. At all but the first steps hardly a noisy box lies near a
small object, so that the head takes long to learn what it is to do there: leave a box that is right as it is, and put
one right that is nearly so. Sampling starts far from the objects, so jitter is for the first part of a training.
"""

import math

import torch
from mmdet.registry import TASK_UTILS
from torch import Tensor

from ..number_checks import is_number
from ..structures import PaddedObjects
from .normal_law import probability


@TASK_UTILS.register_module()
class ObjectJitter:
    """Objects moved and resized in shares of their own sizes, wherever in or out of the image that leaves them.

    The objects are drawn so that each class of an image has its equal share of them.

    Args:
        share (float): of an image's boxes at the start of the training. It falls evenly from there.
        until (float): share of the training at which it has fallen to none.
        shift (float): a centre moves by up to this many widths and heights of its object, uniformly.
        log_scale (float): deviation of the log of the factor of both sides.
        log_aspect (float): deviation of the log of the factor by which the width grows and the height shrinks.

    Raises:
        ValueError: if ``share`` or ``until`` is not above 0 and up to 1, or another is negative or not finite.
    """

    def __init__(self, *, share: float = 0.5, until: float = 0.5, shift: float = 0.75, log_scale: float = 0.4,
                 log_aspect: float = 0.15) -> None:
        for name, value in dict(share=share, until=until).items():
            if not is_number(value) or not 0 < value <= 1:
                raise ValueError(f'{name} of ObjectJitter must be above 0 and at most 1, got {value!r}; for none leave '
                                 'out box_sampler.jitter')
        for name, value in dict(shift=shift, log_scale=log_scale, log_aspect=log_aspect).items():
            if not is_number(value) or not 0 <= value < math.inf:
                raise ValueError(f'{name} of ObjectJitter must be a finite number of at least 0, got {value!r}')
        self.share, self.until, self.shift = share, until, shift
        self.log_scale, self.log_aspect = log_scale, log_aspect

    def num_boxes(self, num_proposals: int, progress: float) -> int:
        """How many of an image's boxes are jittered objects at a point of the training.

        Args:
            num_proposals (int): N, boxes of an image.
            progress (float): share of the training that is done.
        """
        return round(self.share * max(0.0, 1 - progress / self.until) * num_proposals)

    def __call__(self, objects: PaddedObjects, choice: Tensor, noise: Tensor) -> Tensor:
        """Boxes near the objects.

        Args:
            objects (PaddedObjects): the batch's objects.
            choice (Tensor): uniform in [0, 1], which object, float32, shape (B, N).
            noise (Tensor): standard normal, float32, shape (B, N, 4).

        Returns:
            Tensor: absolute xyxy in pixels, float32, shape (B, N, 4); of no meaning where an image has no object.
        """
        index = _drawn_objects(objects, choice)
        bboxes = objects.bboxes.gather(1, index[..., None].expand(-1, -1, 4))
        sizes = bboxes[..., 2:] - bboxes[..., :2]
        centres = bboxes[..., :2] + (0.5 + self.shift * (2 * probability(noise[..., :2]) - 1)) * sizes
        scale, aspect = self.log_scale * noise[..., 2], self.log_aspect * noise[..., 3]
        half = sizes * torch.stack([scale + aspect, scale - aspect], dim=-1).exp() / 2
        return torch.cat([centres - half, centres + half], dim=-1)


def _drawn_objects(objects: PaddedObjects, choice: Tensor) -> Tensor:
    """Index of an object for each choice, int64, shape (B, N)."""
    same_class = (objects.labels[:, None] == objects.labels[..., None]) & objects.valid[:, None]
    weights = objects.valid / same_class.sum(-1).clamp(min=1)
    # As weights.cumsum(-1), which has no deterministic form on a GPU.
    ends = weights[:, None].expand_as(same_class).tril().sum(-1)
    below_the_end = choice.clamp(max=1 - 1e-6) * ends[:, -1:]
    return torch.searchsorted(ends, below_the_end, right=True).clamp(max=ends.size(1) - 1)
