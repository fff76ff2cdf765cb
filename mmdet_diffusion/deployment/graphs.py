"""The parts of a detector that become graphs. arXiv:2211.09788, Alg. 2: features once, the head at every step."""

import torch
from torch import Tensor, nn

from ..diffusion import sampling_time_pairs
from ..heads import SamplingSettings
from ..post_processing import best_pairs, merge_steps
from ..structures import Detections


class FeatureGraph(nn.Module):
    """From images to the levels that the head looks at.

    Args:
        detector (nn.Module): a :class:`DiffusionDet`.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised and padded images, shape (B, 3, H, W), to levels, shape (B, F, H_l, W_l)."""
        return tuple(self.detector.extract_feat(images))[:self.detector.bbox_head.roi_extractor.num_inputs]


class RefinementGraph(nn.Module):
    """All stages of the head at one diffusion step.

    Args:
        head (nn.Module): a :class:`DynamicDiffusionHead`.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            *inputs (Tensor): the levels; boxes, absolute xyxy in pixels of the network input, float32, shape (B, N, 4);
                diffusion step of each image, int64, shape (B,).

        Returns:
            tuple[Tensor, Tensor]: class logits (B, N, C) and boxes (B, N, 4) of the last stage.
        """
        *levels, bboxes, t = inputs
        outputs = self.head(tuple(levels), bboxes, t)
        return outputs.cls_scores[-1], outputs.bboxes[-1]


class UnrolledGraph(nn.Module):
    """The whole reverse process at a fixed number of steps and boxes, with its noise as an input.

    Args:
        detector (nn.Module): a :class:`DiffusionDet`.
        settings (SamplingSettings): with those numbers.
    """

    def __init__(self, detector: nn.Module, settings: SamplingSettings) -> None:
        super().__init__()
        self.features, self.refinement = FeatureGraph(detector), RefinementGraph(detector.bbox_head)
        self.settings = settings

    @property
    def num_draws(self) -> int:
        """Draws of noise that the process takes."""
        a_step = 1 if self.settings.renewal_score_thr is None else 2
        return 1 + a_step * (self.settings.sampling_timesteps - 1)

    def forward(self, images: Tensor, noise: Tensor, img_whwh: Tensor) -> Detections:
        """From images to what suppression takes.

        Args:
            images (Tensor): shape (B, 3, H, W).
            noise (Tensor): standard normal, in the order in which it is drawn, shape (draws, B, N, 4).
            img_whwh (Tensor): width, height, width, height before padding, pixels, float32, shape (B, 4).

        Returns:
            Detections: of all steps that count, in pixels of the network input.
        """
        levels, sampler, settings = self.features(images), self.refinement.head.box_sampler, self.settings
        draws = iter(noise.unbind(0))
        x_t, found = next(draws), []
        for pair in sampling_time_pairs(sampler.num_train_timesteps, settings.sampling_timesteps):
            t = torch.full_like(img_whwh[:, 0], pair[0], dtype=torch.int64)
            logits, bboxes = self.refinement(*levels, sampler.decode(x_t, img_whwh), t)
            found.append(best_pairs(logits, bboxes))
            if pair[1] >= 0:
                x_t = sampler.denoise(x_t, bboxes, img_whwh, pair, settings.eta, next(draws))
                if settings.renewal_score_thr is not None:
                    best = logits.amax(-1).sigmoid()
                    x_t = sampler.renew(x_t, best, settings.renewal_score_thr, next(draws))
        return merge_steps(found, settings.ensemble)
