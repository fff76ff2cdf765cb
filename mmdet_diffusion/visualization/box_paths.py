"""Each box of the reverse process, followed from noise to what it becomes. arXiv:2211.09788, Alg. 2."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from PIL import Image
from torch import Tensor, nn

from ..structures import SamplingStep
from ..task_modules import image_noise, image_sizes


class Moment(NamedTuple):
    """All boxes of a picture after one stage; N boxes keep their places from moment to moment.

    Attributes:
        t (int): diffusion step.
        step (int): of the sampling, from 0.
        stage (int): of the head, from 1; 0 is the noise that goes into the step.
        bboxes (np.ndarray): absolute xyxy in pixels of the network input, float32, shape (N, 4).
        scores (np.ndarray): of the best class, shape (N,); of noise, what the step before gave.
        labels (np.ndarray): class that the box has at the end of its way, shape (N,).
        becomes (np.ndarray): score at the end of its way, shape (N,).
        renewed (np.ndarray): bool, shape (N,); whether it started anew with this step.
    """

    t: int
    step: int
    stage: int
    bboxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    becomes: np.ndarray
    renewed: np.ndarray


def box_paths(steps: Iterable[SamplingStep], renewal_score_thr: float | None, image: int = 0) -> list[Moment]:
    """Follow the boxes of one picture.

    A box's way ends where it is renewed, or with the last step.

    Args:
        steps (Iterable[SamplingStep]): of ``DynamicDiffusionHead.sampling_steps``.
        renewal_score_thr (float | None): of the same settings; None: boxes are not renewed.
        image (int): of the batch.

    Returns:
        list[Moment]: for each step its noise and then each stage.
    """
    moments = []
    for number, step in enumerate(steps):
        noise = _array(step.noisy_bboxes[image])
        if not moments:
            scores, labels = np.zeros(len(noise), dtype=np.float32), np.zeros(len(noise), dtype=np.int64)
            renewed = np.zeros(len(noise), dtype=bool)
        # The labels and last scores are those of the present moment; the way's end replaces them below.
        moments.append(Moment(step.t, number, 0, noise, np.where(renewed, 0, scores), labels, scores, renewed))
        for stage, (logits, bboxes) in enumerate(zip(*step.stages, strict=True), 1):
            probabilities = _array(logits[image].float().sigmoid())
            scores, labels = probabilities.max(-1), probabilities.argmax(-1)
            moments.append(Moment(step.t, number, stage, _array(bboxes[image]), scores, labels, scores, renewed))
        renewed = np.zeros(len(noise), dtype=bool) if renewal_score_thr is None else scores <= renewal_score_thr
    return _with_ends(moments)


@torch.no_grad()
def follow_boxes(model: nn.Module, data: dict) -> list[list[Moment]]:
    """The boxes of each picture of a batch, at the settings of the head's ``test_cfg``.

    Args:
        model (nn.Module): a :class:`DiffusionDet`, in evaluation mode.
        data (dict): ``inputs``, a tensor of shape (B, 3, H, W), and ``data_samples``, as of its data preprocessor.

    Returns:
        list[list[Moment]]: of each picture. Without a seed in ``test_cfg`` it is 0; global random states stay.
    """
    head, metas = model.bbox_head, [sample.metainfo for sample in data['data_samples']]
    settings, device = head.sampling_settings(), data['inputs'].device
    steps = list(head.sampling_steps(model.extract_feat(data['inputs']), image_sizes(metas, device), settings,
                                     image_noise(settings.seed or 0, metas, device)))
    return [box_paths(steps, settings.renewal_score_thr, image) for image in range(len(metas))]


def on_picture(moments: Sequence[Moment], sample: DetDataSample, picture: Image.Image, longer_side: int
               ) -> tuple[Image.Image, list[Moment]]:
    """A picture resized, and its moments in the pixels of that.

    Args:
        moments (Sequence[Moment]): in pixels of the network input.
        sample (DetDataSample): with the ``img_shape`` of the network input, before padding.
        picture (Image.Image): RGB, of any size.
        longer_side (int): pixels.
    """
    scale = longer_side / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    height, width = sample.img_shape[:2]
    ratio = np.array([size[0] / width, size[1] / height] * 2, dtype=np.float32)
    return (picture.resize(size, Image.Resampling.LANCZOS),
            [moment._replace(bboxes=moment.bboxes * ratio) for moment in moments])


def _with_ends(moments: list[Moment]) -> list[Moment]:
    """Labels and scores of each way's last moment, in all of its moments."""
    result, labels, becomes = [], moments[-1].labels, moments[-1].becomes
    for index in range(len(moments) - 1, -1, -1):
        result.append(moments[index]._replace(labels=labels, becomes=becomes))
        if moments[index].stage == 0 and index:  # before it other boxes were in the places of the renewed ones
            before, renewed = moments[index - 1], moments[index].renewed
            labels, becomes = (np.where(renewed, old, new) for old, new in
                               ((before.labels, labels), (before.becomes, becomes)))
    return result[::-1]


def _array(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()
