"""The few tuples that cross the seams between parts.

Letters in shapes: B images, N proposals, M objects (padded to the image that has most), S stages, C classes.
"""

from typing import NamedTuple

from torch import Tensor


class PaddedObjects(NamedTuple):
    """The objects of a batch as rectangular tensors, so that nothing needs to loop over images or objects.

    Attributes:
        bboxes (Tensor): absolute xyxy in pixels of the network input, float32, shape (B, M, 4); zeros where not valid.
        labels (Tensor): class indices, int64, shape (B, M); zeros where not valid.
        valid (Tensor): bool, shape (B, M); False marks padding. M is at least 1.
        img_whwh (Tensor): width, height, width, height of each image before padding, pixels, float32, shape (B, 4).
    """

    bboxes: Tensor
    labels: Tensor
    valid: Tensor
    img_whwh: Tensor


class StageOutputs(NamedTuple):
    """What the refinement stages say about the proposals.

    Attributes:
        cls_scores (Tensor): class logits, shape (S, B, N, C).
        bboxes (Tensor): absolute xyxy in pixels of the network input, float32, shape (S, B, N, 4).
    """

    cls_scores: Tensor
    bboxes: Tensor


class TrainingDraws(NamedTuple):
    """Every random number that one training batch needs; with these given, training boxes are a pure function.

    Attributes:
        timesteps (Tensor): one step of the diffusion per image, int64 on the host, shape (B,).
        noise (Tensor): standard normal, float32, shape (B, N, 4).
        padding (Tensor): raw draw of the padding boxes, float32, shape (B, N, 4): standard normal for ``gaussian``,
            uniform in [0, 1) for ``uniform``, ignored by the paddings that draw nothing. Where jitter takes a place,
            its first value says which object.
        order (Tensor): keys that decide which objects stay when there are more than N, float32, shape (B, M).
    """

    timesteps: Tensor
    noise: Tensor
    padding: Tensor
    order: Tensor


class Detections(NamedTuple):
    """Box-class pairs of a batch with a fixed number K per image.

    Attributes:
        bboxes (Tensor): absolute xyxy in pixels of the network input, float32, shape (B, K, 4).
        scores (Tensor): probabilities, float32, shape (B, K).
        labels (Tensor): class indices, int64, shape (B, K).
    """

    bboxes: Tensor
    scores: Tensor
    labels: Tensor


class SamplingStep(NamedTuple):
    """One step of the reverse process.

    Attributes:
        t (int): diffusion step.
        noisy_bboxes (Tensor): boxes that go into the head, absolute xyxy in pixels, float32, shape (B, N, 4).
        stages (StageOutputs): what each stage of the head makes of them.
    """

    t: int
    noisy_bboxes: Tensor
    stages: StageOutputs

    @property
    def cls_scores(self) -> Tensor:
        """Class logits of the last stage, shape (B, N, C)."""
        return self.stages.cls_scores[-1]

    @property
    def bboxes(self) -> Tensor:
        """Boxes of the last stage, absolute xyxy in pixels, float32, shape (B, N, 4)."""
        return self.stages.bboxes[-1]
