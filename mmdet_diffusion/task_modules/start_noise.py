"""Where the random numbers of sampling come from: the global generator, or one generator per image."""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..ops import upload

DrawNormal = Callable[[int], Tensor]
"""Takes a number of boxes N, gives standard normal float32 values of shape (B, N, 4)."""


def global_noise(num_images: int, device: torch.device) -> DrawNormal:
    """Draws from torch's global generator of ``device``."""
    return lambda num_boxes: torch.randn((num_images, num_boxes, 4), device=device)


def image_noise(seed: int, img_metas: Sequence[dict], device: torch.device) -> DrawNormal:
    """Draws that depend on nothing but the seed and the image.

    Every image has its own generator on the host, seeded from a hash of ``seed`` and its ``img_id`` (else
    ``img_path``, else a constant). Batch size, order, rank and device do not matter, flips and scales of test-time
    augmentation share the draws, and the global random state stays as it is.

    Args:
        seed (int): test_cfg's seed.
        img_metas (Sequence[dict]): one per image.
        device (torch.device): where the values go.

    Returns:
        DrawNormal: see there.
    """
    generators = [torch.Generator().manual_seed(_image_seed(seed, meta)) for meta in img_metas]
    return lambda num_boxes: upload(torch.stack([torch.randn((num_boxes, 4), generator=generator)
                                                 for generator in generators]), device)


def _image_seed(seed: int, img_meta: dict) -> int:
    name = img_meta.get('img_id')
    if name is None:
        name = img_meta.get('img_path') or ''
    digest = hashlib.blake2b(f'{seed}:{name}'.encode('utf-8', 'surrogateescape'), digest_size=8).digest()
    return int.from_bytes(digest, 'big') >> 1  # manual_seed takes 63 bits on every platform


def with_proposals(x_t: Tensor, proposals: Sequence[Tensor | None], coder: nn.Module, img_whwh: Tensor) -> Tensor:
    """Put boxes that are known, such as detections in the frame before, in the place of the first noisy ones.

    At least half of the boxes of an image stay noise, so that what is new is found.

    Args:
        x_t (Tensor): start noise in the signal frame, float32, shape (B, N, 4).
        proposals (Sequence[Tensor | None]): of each image, absolute xyxy in pixels of the network input, the most
            important first, shape (P, 4).
        coder (nn.Module): between boxes and signal.
        img_whwh (Tensor): width, height, width, height of each image in pixels, shape (B, 4).

    Returns:
        Tensor: shape (B, N, 4).
    """
    x_t, most = x_t.clone(), x_t.shape[1] // 2
    for signal, bboxes, whwh in zip(x_t, proposals, img_whwh, strict=True):
        if bboxes is not None and len(bboxes):
            known = bboxes[:most].to(signal)
            signal[:len(known)] = coder.encode(known, whwh)
    return x_t
