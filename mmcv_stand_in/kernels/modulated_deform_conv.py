"""mmcv's kernels of deformable convolution, second version: each tap has a mask besides its offset."""

from collections.abc import Callable

from torch import Tensor

from .deformable_convolution import Settings, deformable_convolution
from .gradients import gradients


def modulated_deform_conv_forward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor,
                                  mask: Tensor, output: Tensor, columns: Tensor, kernel_h: int, kernel_w: int,
                                  stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int,
                                  dilation_w: int, group: int, deformable_group: int, with_bias: bool) -> None:
    """Convolve; shapes as in :func:`deformable_convolution`.

    Args:
        input (Tensor): images.
        weight (Tensor): of the kernel.
        bias (Tensor): added to each output channel, shape (O,); empty without ``with_bias``.
        ones (Tensor): room that mmcv's kernel works in; not used.
        offset (Tensor): of each tap; see :func:`_as_mmcv_reads`.
        mask (Tensor): of each tap, likewise.
        output (Tensor): receives the result.
        columns (Tensor): as ``ones``.
        kernel_h (int): height of the kernel, as that of ``weight``.
        kernel_w (int): its width.
        stride_h (int): along y.
        stride_w (int): along x.
        pad_h (int): padding along y.
        pad_w (int): along x.
        dilation_h (int): along y.
        dilation_w (int): along x.
        group (int): of channels that are convolved apart.
        deformable_group (int): of channels that have offsets of their own.
        with_bias (bool): whether there is a bias.
    """
    settings = Settings((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group)
    output.copy_(_convolution(settings, tuple(output.shape[2:]))(input, offset, mask, weight))
    if with_bias:
        output.add_(bias[:, None, None])


def modulated_deform_conv_backward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor,
                                   mask: Tensor, columns: Tensor, grad_input: Tensor, grad_weight: Tensor,
                                   grad_bias: Tensor, grad_offset: Tensor, grad_mask: Tensor, grad_output: Tensor,
                                   kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int,
                                   dilation_h: int, dilation_w: int, group: int, deformable_group: int,
                                   with_bias: bool) -> None:
    """Gradients, added to the tensors named after what they are by; others as in the forward pass."""
    settings = Settings((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group)
    convolve = _convolution(settings, tuple(grad_output.shape[2:]))
    found = gradients(convolve, (input, offset, mask, weight), grad_output)
    for target, gradient in zip((grad_input, grad_offset, grad_mask, grad_weight), found, strict=True):
        target.add_(gradient)
    if with_bias:
        grad_bias.add_(grad_output.sum((0, 2, 3)))


def _convolution(settings: Settings, size: tuple[int, int]) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The convolution, of images, offsets, masks and weights, with outputs of a height and width."""
    return lambda images, offset, mask, weight: deformable_convolution(
        settings, images, _as_mmcv_reads(offset, size), _as_mmcv_reads(mask, size), weight)


def _as_mmcv_reads(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Offsets or masks of a larger map than the output's, as mmcv's kernel takes them: number after number of an image.

    DyHead (arXiv:2106.08322) in MMDetection gives those of a finer level.
    """
    number = values.size(1) * size[0] * size[1]
    if values[0].numel() < number:
        raise RuntimeError(f'offsets and masks of shape {tuple(values.shape)} are too few for an output of {size}')
    return values.flatten(1)[:, :number].reshape(len(values), -1, *size)
