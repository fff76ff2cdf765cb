"""Noisy boxes for training and the reverse process for sampling. arXiv:2211.09788, Sec. 3.3, 3.4, Alg. 1 and 2."""

import warnings
from collections.abc import Mapping

import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from mmdet.utils import OptConfigType
from torch import Tensor, nn

from ..diffusion import CosineNoiseSchedule, ddim_step
from ..structures import PaddedObjects, TrainingDraws
from .normal_law import probability
from .signal_bbox_coder import SignalBBoxCoder
from .size_bbox_coder import SizeBBoxCoder

PADDINGS = ('gaussian', 'uniform', 'full_image', 'repeat', 'start')
PAPER_SIGNAL_SCALE = 2.0
MIN_PADDING_SIZE = 1e-4  # of the image; a padding box keeps an area


@TASK_UTILS.register_module()
class DiffusionBoxSampler(nn.Module):
    """Everything between boxes and noise; draws nothing unless asked to, knows no features, losses or NMS.

    Args:
        num_train_timesteps (int): T, steps of the forward process.
        signal_scale (float, optional): half range of the signal frame (paper Table 3a). None: 2, the paper's.
        coder (OptConfigType): another signal frame, such as ``SizeBBoxCoder``, in place of the paper's.
        padding (str): how objects are padded to a fixed number of boxes (paper Table 3b): ``gaussian`` draws
            N(0.5, 1/6) in normalised cxcywh, ``uniform`` draws from [0, 1), ``full_image`` repeats the image's own
            box, ``repeat`` repeats the objects, ``start`` draws boxes as those that sampling starts from. Where an
            image has no object, one box of the full image stands in.
        jitter (OptConfigType): such as ``dict(type='ObjectJitter')``: whatever the step, objects moved and resized in
            shares of their own sizes take the places of the last padding boxes, in images that have objects. None: the
            paper's training.

    Raises:
        ValueError: if a value is outside its range or ``padding`` is unknown.
    """

    def __init__(self, *, num_train_timesteps: int = 1000, signal_scale: float | None = None,
                 coder: OptConfigType = None, padding: str = 'gaussian', jitter: OptConfigType = None) -> None:
        super().__init__()
        if padding not in PADDINGS:
            raise ValueError(f'padding must be one of {", ".join(PADDINGS)}, got {padding!r} in box_sampler')
        self.schedule = CosineNoiseSchedule(num_train_timesteps)
        if coder is not None and signal_scale is not None:
            raise ValueError(f'box_sampler has both signal_scale={signal_scale!r} and a coder, {coder["type"]}, which '
                             'has its own frame; set one of them to None')
        scale = PAPER_SIGNAL_SCALE if signal_scale is None else signal_scale
        self.coder = SignalBBoxCoder(scale) if coder is None else TASK_UTILS.build(coder)
        self.padding = padding
        self.jitter = None if jitter is None else TASK_UTILS.build(jitter)

    def check_frame(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        """Compare the signal frame that a head was trained in with this one; weights of one fit the other.

        Args:
            state_dict (Mapping[str, Tensor]): of the head.
            prefix (str): of the sampler's names in it.

        Raises:
            ValueError: if the head was trained in the sizes of a data set, and this frame is the paper's.
        """
        sizes = SizeBBoxCoder.trained_sizes(state_dict, f'{prefix}coder.')
        has_sizes = isinstance(self.coder, SizeBBoxCoder)
        if has_sizes and not sizes:
            warnings.warn('the head of the checkpoint was trained in the frame of the paper (box_sampler.signal_scale) '
                          'and the config has SizeBBoxCoder: detections are wrong until it is trained on', stacklevel=2)
        if sizes and not has_sizes:
            settings = ', '.join(f'{name}={value}' for name, value in sizes.items())
            raise ValueError('the checkpoint was trained in the sizes of a data set, and the config has '
                             f'{type(self.coder).__name__}: set box_sampler.signal_scale=None and box_sampler.coder='
                             f"dict(type='SizeBBoxCoder', {settings})")

    @property
    def num_train_timesteps(self) -> int:
        """T, steps of the forward process."""
        return self.schedule.num_timesteps

    # Training ---------------------------------------------------------------------------------------------------------

    def draw_training(self, objects: PaddedObjects, num_proposals: int, generator: torch.Generator | None = None,
                      num_groups: int = 1) -> TrainingDraws:
        """Draw what :meth:`noisy_boxes` needs.

        Args:
            objects (PaddedObjects): the batch's objects; only shapes and the device are used.
            num_proposals (int): N, boxes per image.
            generator (torch.Generator, optional): source of all draws, on the objects' device. None: the global ones.
            num_groups (int): G, rows of ``objects`` in a row that are of one image. Their steps are spread evenly: one
                in each G-th of the range, every step as likely as any other over all of them.

        Returns:
            TrainingDraws: see there.
        """
        num_images, max_objects = objects.labels.shape
        device = objects.bboxes.device
        shape = (num_images, num_proposals, 4)
        draw_padding = torch.rand if self.padding == 'uniform' else torch.randn
        timesteps = torch.randint(self.num_train_timesteps, (num_images, ), generator=generator,
                                  device='cpu' if generator is None else generator.device)
        timesteps = timesteps.to(torch.device('cpu'))  # from a GPU's generator at the price of a wait
        return TrainingDraws(
            timesteps=self._spread(timesteps.view(-1, num_groups)).flatten(),
            noise=torch.randn(shape, device=device, generator=generator),
            padding=draw_padding(shape, device=device, generator=generator),
            order=torch.rand((num_images, max_objects), device=device, generator=generator))

    def _spread(self, timesteps: Tensor) -> Tensor:
        """Uniform steps, shape (B, G), to one in each G-th of the range, the same shape."""
        num_groups = timesteps.size(1)
        return (timesteps + torch.arange(num_groups) * self.num_train_timesteps) // num_groups

    def noisy_boxes(self, objects: PaddedObjects, draws: TrainingDraws, progress: float | None = None) -> Tensor:
        """Boxes that the head is trained on: padded objects after ``timesteps`` steps of noise (Alg. 1).

        Args:
            objects (PaddedObjects): the batch's objects.
            draws (TrainingDraws): the random numbers.
            progress (float, optional): share of the training that is done, by which ``jitter`` goes. None: without it.

        Returns:
            Tensor: absolute xyxy in pixels, float32, shape (B, N, 4).
        """
        x_start = self.coder.normalized_to_signal(self._pad(objects, draws))
        x_t = self.schedule.add_noise(x_start, draws.noise, draws.timesteps)
        bboxes = self.coder.decode(x_t, objects.img_whwh[:, None])
        if self.jitter is None or progress is None:
            return bboxes
        num_jittered = self.jitter.num_boxes(bboxes.size(1), progress)
        return self._with_jitter(bboxes, objects, draws, num_jittered) if num_jittered else bboxes

    def _with_jitter(self, bboxes: Tensor, objects: PaddedObjects, draws: TrainingDraws, num_jittered: int) -> Tensor:
        """Jittered objects in the last places, none in the place of an object or where there is no object."""
        num_proposals = bboxes.size(1)
        num_objects = objects.valid.sum(1, keepdim=True)
        first = num_objects.clamp(min=num_proposals - num_jittered)
        taken = (torch.arange(num_proposals, device=bboxes.device) >= first) & (num_objects > 0)
        choice = draws.padding[..., 0]
        if self.padding != 'uniform':
            choice = probability(choice)
        return torch.where(taken[..., None], self.jitter(objects, choice, draws.noise), bboxes)

    def _pad(self, objects: PaddedObjects, draws: TrainingDraws) -> Tensor:
        """Objects first, padding after them: normalised cxcywh, shape (B, N, 4)."""
        num_proposals = draws.noise.size(1)
        bboxes = bbox_xyxy_to_cxcywh(objects.bboxes / objects.img_whwh[:, None])
        num_objects = objects.valid.sum(1, keepdim=True)
        full_image = bboxes.new_tensor([0.5, 0.5, 1.0, 1.0])
        is_empty = num_objects == 0
        bboxes = torch.where(is_empty[..., None], full_image, bboxes)
        num_kept = num_objects.clamp(min=1, max=num_proposals)

        slots = torch.arange(num_proposals, device=bboxes.device)[None]
        order = self._object_order(objects.valid, draws.order, num_proposals)
        source = order.gather(1, (slots % num_kept).clamp(max=order.size(1) - 1))
        taken = bboxes.gather(1, source[..., None].expand(-1, -1, 4))
        if self.padding == 'repeat':
            return taken
        return torch.where((slots < num_kept)[..., None], taken, self._padding_boxes(draws.padding, full_image))

    @staticmethod
    def _object_order(valid: Tensor, keys: Tensor, num_proposals: int) -> Tensor:
        """Indices that put an image's objects first: as they come, or in random order when not all have room."""
        in_order = torch.arange(valid.size(1), device=valid.device, dtype=keys.dtype).expand_as(keys)
        overfull = valid.sum(1, keepdim=True) > num_proposals
        return torch.where(overfull, keys, in_order).masked_fill(~valid, torch.inf).argsort(dim=1, stable=True)

    def _padding_boxes(self, drawn: Tensor, full_image: Tensor) -> Tensor:
        """Padding boxes made from their raw draws: normalised cxcywh, shape (B, N, 4)."""
        if self.padding == 'full_image':
            return full_image.expand_as(drawn)
        if self.padding == 'start':
            return self.coder.signal_to_normalized(drawn)
        boxes = drawn / 6 + 0.5 if self.padding == 'gaussian' else drawn
        return torch.cat([boxes[..., :2], boxes[..., 2:].clamp(min=MIN_PADDING_SIZE)], dim=-1)

    # Sampling ---------------------------------------------------------------------------------------------------------

    def decode(self, x_t: Tensor, img_whwh: Tensor) -> Tensor:
        """Boxes that the head sees at a step.

        Args:
            x_t (Tensor): signal frame, float32, shape (B, N, 4).
            img_whwh (Tensor): pixels, shape (B, 4).

        Returns:
            Tensor: absolute xyxy in pixels, float32, shape (B, N, 4).
        """
        return self.coder.decode(x_t, img_whwh[:, None])

    def denoise(self, x_t: Tensor, bboxes: Tensor, img_whwh: Tensor, time_pair: tuple[int, int], eta: float,
                noise: Tensor) -> Tensor:
        """One DDIM step towards the boxes that the head predicts (Alg. 2).

        Args:
            x_t (Tensor): signal frame, float32, not clamped, shape (B, N, 4).
            bboxes (Tensor): the head's boxes, absolute xyxy in pixels, shape (B, N, 4).
            img_whwh (Tensor): pixels, shape (B, 4).
            time_pair (tuple[int, int]): present and next step.
            eta (float): 0 is deterministic, 1 adds all the noise of the forward process.
            noise (Tensor): standard normal, float32, shape (B, N, 4).

        Returns:
            Tensor: x at the next step, signal frame, float32, shape (B, N, 4).
        """
        x_start = self.coder.encode(bboxes, img_whwh[:, None])
        now, following = (self.schedule.signal_share(t) for t in time_pair)
        return ddim_step(x_t, x_start, now, following, eta, noise)

    @staticmethod
    def renew(x_t: Tensor, best_scores: Tensor, score_thr: float, fresh: Tensor) -> Tensor:
        """Replace the boxes that found nothing by fresh noise (box renewal, Sec. 3.4), each in its place.

        Args:
            x_t (Tensor): signal frame, float32, shape (B, N, 4).
            best_scores (Tensor): highest class probability of each box, shape (B, N).
            score_thr (float): boxes at or below it are replaced.
            fresh (Tensor): standard normal, float32, shape (B, N, 4).

        Returns:
            Tensor: signal frame, float32, shape (B, N, 4).
        """
        return torch.where((best_scores > score_thr)[..., None], x_t, fresh)
