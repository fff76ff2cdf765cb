"""Detections of flipped and resized views of an image, merged."""

import torch
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, SampleList
from mmdet.utils import ConfigType, OptConfigType
from mmengine.structures import InstanceData
from torch import nn

from ..post_processing import suppress
from ..sampling_settings import SamplingSettings, known_values
from ..structures import Detections


@MODELS.register_module()
class DiffusionDetTTAModel(DetTTAModel):
    """As MMDetection's ``DetTTAModel``, with the suppression and number of detections of the model's ``test_cfg``.

    Classes are told apart as :func:`class_wise_nms` does it, so that those of LVIS are not mixed by rounding.

    Args:
        module (ConfigType | nn.Module): a :class:`DiffusionDet`.
        tta_cfg (OptConfigType): ``nms`` and ``max_per_img`` that differ from those of ``test_cfg``; either may be left
            out.
        data_preprocessor (OptConfigType): of the module, if it is a config.

    Raises:
        ValueError: if a key of ``tta_cfg`` is unknown or its value out of range.
    """

    def __init__(self, module: ConfigType | nn.Module, *, tta_cfg: OptConfigType = None,
                 data_preprocessor: OptConfigType = None) -> None:
        super().__init__(tta_cfg=tta_cfg, module=module, data_preprocessor=data_preprocessor)
        self.merging_settings()  # a wrong tta_cfg shows now, not after the first image

    def merging_settings(self) -> SamplingSettings:
        """The present ``test_cfg`` of the model with what ``tta_cfg`` says otherwise, checked."""
        own = known_values(self.tta_cfg, ('nms', 'max_per_img'), 'tta_cfg')
        settings = self.module.bbox_head.sampling_settings()._replace(**own)
        settings.check('tta_cfg')
        return settings

    def merge_preds(self, data_samples_list: list[SampleList]) -> SampleList:
        """Merge the detections of each image's views.

        Args:
            data_samples_list (list[SampleList]): for each image its views, with ``pred_instances`` in pixels of the
                original image, and ``ori_shape``, ``flip``, ``flip_direction``.

        Returns:
            SampleList: the first view of each image with the merged ``pred_instances``, by falling score.
        """
        settings = self.merging_settings()
        return [self._merged(views, settings) for views in data_samples_list]

    def _merged(self, views: SampleList, settings: SamplingSettings) -> DetDataSample:
        found = [view.pred_instances for view in views]
        bboxes, scores = self.merge_aug_bboxes([view.bboxes for view in found], [view.scores for view in found],
                                               [view.metainfo for view in views])
        merged = suppress(Detections(bboxes, scores, torch.cat([view.labels for view in found])), settings.nms)
        bboxes, scores, labels = (values[settings.best] for values in merged)
        views[0].pred_instances = InstanceData(bboxes=bboxes, scores=scores, labels=labels)
        return views[0]
