"""DiffusionDet: Diffusion Model for Object Detection. Chen et al. 2023, arXiv:2211.09788."""

from contextlib import AbstractContextManager, nullcontext

import torch
from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS
from mmdet.structures import OptSampleList, SampleList
from mmdet.utils import ConfigType, OptConfigType, OptMultiConfig
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

import mmcv_stand_in

from ..half_precision import half_dtype, half_precision
from ..number_checks import is_number
from ..structures import StageOutputs
from .auxiliary_levels import AuxiliaryLevels
from .finite_losses import FiniteLosses
from .pyramid_check import check_pyramid, check_pyramid_at_build, pyramid_source


@MODELS.register_module()
class DiffusionDet(SingleStageDetector):
    """Backbone, neck and a :class:`DynamicDiffusionHead`.

    Args:
        backbone (ConfigType): any of MMDetection's.
        neck (OptConfigType): any whose levels have equal channels. None: the backbone's own levels have.
        bbox_head (ConfigType): the diffusion head.
        train_cfg (OptConfigType): handed to the head.
        test_cfg (OptConfigType): handed to the head; see :class:`SamplingSettings`.
        data_preprocessor (OptConfigType): such as ``DetDataPreprocessor``.
        auxiliary_head (OptConfigType): a dense head of MMDetection's, such as ``FCOSHead``, that learns from the same
            features and is not used for detection. Its losses teach a backbone without pre-trained weights at every
            pixel, where the diffusion head does so at a few boxes (after Zong et al. 2023, arXiv:2211.12860). It learns
            from the levels whose strides it has.
        auxiliary_weight (float): of its losses.
        channels_last (bool): keep images and the weights of convolutions in that layout: faster on a CPU, and on a GPU
            in half precision. Not with compiled operators of mmcv's, which refuse the layout or misread it. To resume a
            training with a ``fused`` optimiser, leave this as it was: torch pairs the memory of weights and states.
        test_dtype (str, optional): ``bfloat16`` or ``float16``: from images to detections matrix products and
            convolutions run in it, by autocast; boxes, where they are looked up, diffusion and suppression stay in
            float32, on a CPU self-attention, too. None: all in float32.
        init_cfg (OptMultiConfig): of mmengine's ``BaseModule``.

    Raises:
        ValueError: if number, channels or strides of the levels do not fit the head (see :func:`check_pyramid`), or
            ``channels_last`` is set and a part has compiled operators of mmcv's, or there is no such ``test_dtype``, or
            the auxiliary head's strides are not of the pyramid.
    """

    def __init__(self, *, backbone: ConfigType, neck: OptConfigType = None, bbox_head: ConfigType,
                 auxiliary_head: OptConfigType = None, auxiliary_weight: float = 1.0, train_cfg: OptConfigType = None,
                 test_cfg: OptConfigType = None, data_preprocessor: OptConfigType = None, channels_last: bool = False,
                 test_dtype: str | None = None, init_cfg: OptMultiConfig = None) -> None:
        self._test_dtype = None if test_dtype is None else half_dtype(test_dtype, 'model.test_dtype')
        super().__init__(backbone=backbone, neck=neck, bbox_head=bbox_head, train_cfg=train_cfg, test_cfg=test_cfg,
                         data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        num_levels = check_pyramid_at_build(self.backbone, getattr(self, 'neck', None), self.bbox_head.roi_extractor)
        self._pyramid_is_checked = num_levels is not None
        self.auxiliary_head = None
        if auxiliary_head is not None:
            num_classes = auxiliary_head.get('num_classes', self.bbox_head.num_classes)
            if num_classes != self.bbox_head.num_classes:
                raise ValueError(f'auxiliary_head.num_classes ({num_classes}) and bbox_head.num_classes '
                                 f'({self.bbox_head.num_classes}) must be equal; leave out the first')
            if not is_number(auxiliary_weight) or not 0 < auxiliary_weight < float('inf'):
                raise ValueError(f'model.auxiliary_weight must be a number above 0, got {auxiliary_weight!r}; for no '
                                 'auxiliary head leave out auxiliary_head')
            self.auxiliary_head = MODELS.build(dict(auxiliary_head, num_classes=num_classes))
            # Under autocast too: mmcv's compiled focal loss takes no bfloat16, and float16 overflows in sums.
            self.auxiliary_head.register_forward_hook(_give_single_precision)
            self._auxiliary_levels = AuxiliaryLevels(
                self.auxiliary_head, self.bbox_head.roi_extractor.featmap_strides, num_levels)
        self.auxiliary_weight = auxiliary_weight
        self._finite_losses = FiniteLosses()
        self.channels_last = channels_last
        if channels_last:
            self._refuse_operators_of_mmcv()
            self.to(memory_format=torch.channels_last)

    def _refuse_operators_of_mmcv(self) -> None:
        if mmcv_stand_in.is_active():  # stand-ins read any layout
            return
        for name, module in self.named_modules():
            bases = {base.__module__.split('.')[:2] == ['mmcv', 'ops'] for base in type(module).__mro__}
            if True in bases and not name.startswith('bbox_head.roi_extractor'):  # which lays levels out itself
                raise ValueError(f'channels_last=True, but {name} is a {type(module).__name__}, an operator of mmcv '
                                 'that refuses this layout or misreads it; leave out channels_last or the operator')

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Levels of the neck, or of the backbone where there is none.

        Args:
            batch_inputs (Tensor): images, shape (B, 3, H, W).

        Returns:
            tuple[Tensor, ...]: shape (B, F, H_l, W_l) each.

        Raises:
            ValueError: if they do not fit the head and that could not be seen when the model was built.
        """
        if self.channels_last:
            batch_inputs = batch_inputs.contiguous(memory_format=torch.channels_last)
        feats = super().extract_feat(batch_inputs)
        if not self._pyramid_is_checked:
            source = pyramid_source(self.backbone, getattr(self, 'neck', None))
            check_pyramid(feats, tuple(map(int, batch_inputs.shape[2:])), self.bbox_head.roi_extractor, source)
            self._pyramid_is_checked = True
        return feats

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Losses of a training batch.

        Args:
            batch_inputs (Tensor): images, shape (B, 3, H, W).
            batch_data_samples (SampleList): with ``gt_instances``.

        Returns:
            dict[str, Tensor]: of the diffusion head, and with ``aux.`` in front those of the auxiliary head.

        Raises:
            FloatingPointError: if a loss is not finite; see :class:`FiniteLosses`.
        """
        self.test_precision(batch_inputs.device)  # a device without it shows now, not at the first validation
        feats = self.extract_feat(batch_inputs)
        losses = self.bbox_head.loss(feats, batch_data_samples)
        if self.auxiliary_head is not None:
            auxiliary = self.auxiliary_head.loss(self._auxiliary_levels(feats), batch_data_samples)
            losses.update({f'aux.{name}': _weighted(value, self.auxiliary_weight)
                           for name, value in auxiliary.items()})
        self._finite_losses.check(losses, batch_data_samples)
        return losses

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        """Detections of a batch, in ``test_dtype`` where that is set.

        Args:
            batch_inputs (Tensor): images, shape (B, 3, H, W).
            batch_data_samples (SampleList): with ``metainfo``, and ``proposals`` where there are boxes to start from.
            rescale (bool): boxes in pixels of the original images instead of the network input.

        Returns:
            SampleList: with ``pred_instances``.

        Raises:
            RuntimeError: if the device does not compute in ``test_dtype``.
        """
        with self.test_precision(batch_inputs.device):
            return super().predict(batch_inputs, batch_data_samples, rescale)

    def test_precision(self, device: torch.device) -> AbstractContextManager:
        """``test_dtype`` on a device, for what is computed inside; RuntimeError where it does not compute in it."""
        if self._test_dtype is None:
            return nullcontext()
        return half_precision(device, self._test_dtype, 'model.test_dtype')

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses of this process; what is logged is the mean over all processes.

        Args:
            losses (dict[str, Tensor]): scalars.

        Returns:
            tuple[Tensor, dict[str, Tensor]]: the loss to go back from, and the values to log.
        """
        loss, log_vars = super().parse_losses(losses)
        if get_world_size() > 1:
            values = torch.stack([value.detach() for value in log_vars.values()])
            all_reduce(values, 'mean')
            log_vars = dict(zip(log_vars, values.unbind(), strict=True))
        return loss, log_vars

    def _forward(self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None) -> StageOutputs:
        """One pass of the network over noise at the last diffusion step, as FLOPs counters and tracers need it.

        Args:
            batch_inputs (Tensor): images, shape (B, 3, H, W).
            batch_data_samples (OptSampleList): not used.

        Returns:
            StageOutputs: of all stages.
        """
        num_images, _, height, width = batch_inputs.shape
        head = self.bbox_head
        sampler = head.box_sampler
        whwh = batch_inputs.new_tensor([[width, height, width, height]], dtype=torch.float32).expand(num_images, -1)
        noise = torch.randn((num_images, head.num_proposals, 4), device=batch_inputs.device)
        t = torch.full((num_images, ), sampler.num_train_timesteps - 1, device=batch_inputs.device)
        return head(self.extract_feat(batch_inputs), sampler.decode(noise, whwh), t)


def _weighted(loss: Tensor | list[Tensor], weight: float) -> Tensor | list[Tensor]:
    """A loss of one of MMDetection's heads, some of which give one of each level."""
    return [value * weight for value in loss] if isinstance(loss, list) else loss * weight


def _give_single_precision(head: nn.Module, args: tuple, outputs: object) -> object:
    """A forward hook: what a head gives, tensors in lists and tuples, in float32."""
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(_give_single_precision(head, args, one) for one in outputs)
    return outputs.float() if isinstance(outputs, Tensor) and outputs.is_floating_point() else outputs
