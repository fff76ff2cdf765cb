"""Detection decoder that refines noisy boxes, and the loops around it. arXiv:2211.09788, Sec. 3.2-3.4, Alg. 1 and 2."""

from collections.abc import Iterator, Sequence

import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import SampleList
from mmdet.utils import ConfigType, InstanceList, OptConfigType, OptMultiConfig
from mmengine.model import BaseModule, ModuleList
from torch import Tensor

from ..diffusion import sampling_time_pairs
from ..layers import TimeEmbedding
from ..post_processing import best_pairs, finish_image, merge_steps
from ..roi_extractors import BoxFeatures, build_roi_extractor
from ..sampling_settings import SamplingSettings
from ..structures import Detections, SamplingStep, StageOutputs
from ..task_modules import (
    DrawNormal,
    even_noise,
    global_noise,
    image_noise,
    image_sizes,
    pad_objects,
    refine_boxes,
    repeat_objects,
    with_proposals,
)
from .diffusion_stage import xavier_uniform_linears
from .training_progress import training_progress
from .training_settings import TrainingSettings


@MODELS.register_module()
class DynamicDiffusionHead(BaseModule):
    """Cascade of refinement stages with a diffusion around it.

    Args:
        num_classes (int): C; set here and nowhere else.
        feat_channels (int): channels F of every level of the neck and of the proposal features.
        num_proposals (int): N, boxes per image in training.
        num_stages (int): S, refinement stages.
        prior_prob (float): class probability at the start of training.
        box_sampler (ConfigType): such as ``DiffusionBoxSampler``.
        stage (ConfigType): such as ``DynamicDiffusionStage``, without what the head knows.
        roi_extractor (ConfigType): ``PyramidRoIExtractor`` or one of MMDetection's RoI extractors.
        criterion (ConfigType): such as ``DiffusionDetCriterion``.
        train_cfg (OptConfigType): see :class:`TrainingSettings`.
        test_cfg (OptConfigType): see :class:`SamplingSettings`.
        init_cfg (OptMultiConfig): of mmengine's ``BaseModule``. Overrides the time embedding's weights, and those of
            the stages where its type is ``Pretrained``; else stages have an ``init_cfg`` of their own.

    Raises:
        ValueError: if a number is out of range, channels do not agree, or ``train_cfg`` or ``test_cfg`` is wrong.
    """

    def __init__(self, *, num_classes: int, feat_channels: int = 256, num_proposals: int = 500, num_stages: int = 6,
                 prior_prob: float = 0.01, box_sampler: ConfigType, stage: ConfigType, roi_extractor: ConfigType,
                 criterion: ConfigType, train_cfg: OptConfigType = None, test_cfg: OptConfigType = None,
                 init_cfg: OptMultiConfig = None) -> None:
        super().__init__(init_cfg=init_cfg)
        for name, value in dict(num_classes=num_classes, num_proposals=num_proposals, num_stages=num_stages).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'{name} of DynamicDiffusionHead must be an integer of at least 1, got {value!r}')
        if not isinstance(prior_prob, float) or not 0 < prior_prob < 1:
            raise ValueError(f'prior_prob of DynamicDiffusionHead must lie between 0 and 1, got {prior_prob!r}')
        self.num_classes = num_classes
        self.num_proposals = num_proposals
        self.training_settings = TrainingSettings.from_cfg(train_cfg)
        self.test_cfg = test_cfg
        self.box_sampler = TASK_UTILS.build(box_sampler)
        self.roi_extractor = build_roi_extractor(roi_extractor)
        if self.roi_extractor.out_channels != feat_channels:
            raise ValueError(f'roi_extractor.out_channels ({self.roi_extractor.out_channels}) and feat_channels '
                             f'({feat_channels}) of DynamicDiffusionHead must be equal, and equal to the channels of '
                             'the neck')
        self.time_embedding = TimeEmbedding(feat_channels)
        stage = dict(stage, num_classes=num_classes, feat_channels=feat_channels, prior_prob=prior_prob,
                     num_bins=self.roi_extractor.num_bins)
        self.stages = ModuleList(MODELS.build(stage) for _ in range(num_stages))
        self.criterion = MODELS.build(criterion)
        self.sampling_settings()  # a wrong test_cfg shows now, not after the first epoch

    def init_weights(self) -> None:
        """Xavier-uniform matrices of the time embedding, then ``init_cfg`` and the stages' own."""
        if not self.is_init:
            xavier_uniform_linears(self.time_embedding)
        super().init_weights()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        if any(name.startswith(f'{prefix}stages.') for name in state_dict):  # else it has no head of this kind
            self.box_sampler.check_frame(state_dict, f'{prefix}box_sampler.')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def sampling_settings(self) -> SamplingSettings:
        """The present ``test_cfg``, checked. It may be changed between two calls of :meth:`predict`."""
        return SamplingSettings.from_cfg(self.test_cfg, self.num_proposals, self.box_sampler.num_train_timesteps)

    def forward(self, feats: tuple[Tensor, ...], bboxes: Tensor, t: Tensor) -> StageOutputs:
        """Refine boxes through all stages.

        Args:
            feats (tuple[Tensor, ...]): levels of the neck, shape (B, F, H_l, W_l).
            bboxes (Tensor): absolute xyxy in pixels of the network input, float32, shape (B, N, 4).
            t (Tensor): diffusion step of each image, int64, shape (B,).

        Returns:
            StageOutputs: ``cls_scores`` (S, B, N, C) and ``bboxes`` (S, B, N, 4).
        """
        return self._refine(self.roi_extractor(feats), bboxes, t)

    def _refine(self, box_features: BoxFeatures, bboxes: Tensor, t: Tensor) -> StageOutputs:
        time = self.time_embedding(t)
        num_images, num_proposals = bboxes.shape[:2]
        weights_dtype = self.time_embedding.dtype
        proposal_features = None
        cls_scores, all_bboxes = [], []
        for stage in self.stages:
            roi_features = box_features(bboxes)
            if weights_dtype.itemsize < 4:  # a model in half precision; under autocast the weights are in single
                roi_features = roi_features.to(weights_dtype)
            if proposal_features is None:
                # All stages add to it, so under autocast it is not in half precision as the RoI features may be.
                proposal_features = roi_features.mean(1, dtype=weights_dtype).unflatten(0, (num_images, num_proposals))
            logits, deltas, proposal_features = stage(roi_features, proposal_features, time)
            refined = refine_boxes(bboxes, deltas)
            cls_scores.append(logits)
            all_bboxes.append(refined)
            bboxes = refined.detach()
        return StageOutputs(torch.stack(cls_scores), torch.stack(all_bboxes))

    def loss(self, feats: tuple[Tensor, ...], batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Losses of a training batch (Alg. 1).

        Args:
            feats (tuple[Tensor, ...]): levels of the neck.
            batch_data_samples (SampleList): with ``gt_instances``.

        Returns:
            dict[str, Tensor]: see :class:`DiffusionDetCriterion`.
        """
        num_groups = self.training_settings.num_groups
        objects = repeat_objects(pad_objects(batch_data_samples, self.num_classes), num_groups)
        draws = self.box_sampler.draw_training(objects, self.num_proposals, num_groups=num_groups)
        bboxes = self.box_sampler.noisy_boxes(objects, draws, training_progress())
        box_features = _of_groups(self.roi_extractor(feats), num_groups)
        try:
            outputs = self._refine(box_features, bboxes, draws.timesteps.to(bboxes.device))
        except torch.cuda.OutOfMemoryError as error:
            raise torch.cuda.OutOfMemoryError(
                f'{error}\nThe head trained on {len(batch_data_samples)} images x {num_groups} groups x '
                f'{self.num_proposals} boxes; lower the batch size, model.train_cfg.num_groups or '
                'model.bbox_head.num_proposals') from error
        return self.criterion(outputs, objects)

    @torch.no_grad()
    def predict(self, feats: tuple[Tensor, ...], batch_data_samples: SampleList, rescale: bool = True) -> InstanceList:
        """Detections of a batch.

        Args:
            feats (tuple[Tensor, ...]): levels of the neck.
            batch_data_samples (SampleList): with ``metainfo``; boxes in ``proposals``, in pixels of the network input,
                take the places of start boxes (:func:`with_proposals`).
            rescale (bool): boxes in pixels of the original images instead of the network input.

        Returns:
            InstanceList: per image ``bboxes`` xyxy, ``scores``, ``labels``, by falling score.
        """
        settings = self.sampling_settings()
        img_metas = [sample.metainfo for sample in batch_data_samples]
        device = feats[0].device
        draw = (global_noise(len(img_metas), device) if settings.seed is None else
                image_noise(settings.seed, img_metas, device))
        proposals = [sample.proposals.bboxes if 'proposals' in sample else None for sample in batch_data_samples]
        steps = self.sample(feats, image_sizes(img_metas, device), settings, draw, proposals)
        merged = merge_steps(steps, settings.ensemble)
        return [finish_image(Detections(*image), meta, settings, rescale)
                for *image, meta in zip(*merged, img_metas, strict=True)]

    def sample(self, feats: tuple[Tensor, ...], img_whwh: Tensor, settings: SamplingSettings, draw: DrawNormal,
               proposals: Sequence[Tensor | None] = ()) -> list[Detections]:
        """The reverse process (Alg. 2): every image of the batch on its own, all in one pass.

        Args:
            feats (tuple[Tensor, ...]): levels of the neck.
            img_whwh (Tensor): width, height, width, height of each image in pixels, shape (B, 4).
            settings (SamplingSettings): steps, eta, renewal, number of boxes.
            draw (DrawNormal): source of all noise: first x_T, then at each step but the last the noise of DDIM and,
                with renewal, that of the renewed boxes.
            proposals (Sequence[Tensor | None]): boxes of each image to start from, besides noise; see
                :func:`with_proposals`. Empty: none.

        Returns:
            list[Detections]: of each step, the N best box-class pairs, in pixels of the network input.
        """
        steps = self.sampling_steps(feats, img_whwh, settings, draw, proposals)
        return [best_pairs(step.cls_scores, step.bboxes) for step in steps]

    def sampling_steps(self, feats: tuple[Tensor, ...], img_whwh: Tensor, settings: SamplingSettings, draw: DrawNormal,
                       proposals: Sequence[Tensor | None] = ()) -> Iterator[SamplingStep]:
        """What happens at each step of :meth:`sample`, with the same arguments.

        Yields:
            SamplingStep: boxes that go into the head and what comes out, in pixels of the network input.
        """
        box_features = self.roi_extractor(feats)
        num_boxes = settings.num_proposals
        x_t = even_noise(draw(1), num_boxes) if settings.start_noise == 'even' else draw(num_boxes)
        if any(bboxes is not None for bboxes in proposals):
            x_t = with_proposals(x_t, proposals, self.box_sampler.coder, img_whwh)
        for time_pair in sampling_time_pairs(self.box_sampler.num_train_timesteps, settings.sampling_timesteps):
            noisy_bboxes = self.box_sampler.decode(x_t, img_whwh)
            t = torch.full((len(img_whwh), ), time_pair[0], device=x_t.device)
            step = SamplingStep(time_pair[0], noisy_bboxes, self._refine(box_features, noisy_bboxes, t))
            yield step
            if time_pair[1] < 0:
                return
            x_t = self.box_sampler.denoise(x_t, step.bboxes, img_whwh, time_pair, settings.eta, draw(num_boxes))
            if settings.renewal_score_thr is not None:
                best_scores = step.cls_scores.float().amax(-1).sigmoid()
                x_t = self.box_sampler.renew(x_t, best_scores, settings.renewal_score_thr, draw(num_boxes))


def _of_groups(box_features: BoxFeatures, num_groups: int) -> BoxFeatures:
    """Look-up for boxes (B * G, N, 4), the groups of an image in a row, in the features of its B images."""
    return lambda bboxes: box_features(bboxes.unflatten(0, (-1, num_groups)).flatten(1, 2))
