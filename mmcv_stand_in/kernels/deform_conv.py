"""mmcv's kernels of deformable convolution, first version: offsets without masks."""

import functools

from torch import Tensor

from .deformable_convolution import Settings, deformable_convolution
from .gradients import gradients


def deform_conv_forward(input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor,
                        kW: int, kH: int, dW: int, dH: int, padW: int, padH: int,  # noqa: N803
                        dilationW: int, dilationH: int, group: int, deformable_group: int,  # noqa: N803
                        im2col_step: int) -> None:
    """Convolve; shapes as in :func:`deformable_convolution`.

    Args:
        input (Tensor): images.
        weight (Tensor): of the kernel.
        offset (Tensor): of each tap.
        output (Tensor): receives the result.
        columns (Tensor): room that mmcv's kernel works in; not used, like all that is not listed here.
        ones (Tensor): likewise.
        kW (int): width of the kernel, as that of ``weight``.
        kH (int): its height.
        dW (int): stride along x.
        dH (int): along y.
        padW (int): padding along x.
        padH (int): along y.
        dilationW (int): along x.
        dilationH (int): along y.
        group (int): of channels that are convolved apart.
        deformable_group (int): of channels that have offsets of their own.
        im2col_step (int): images at once in mmcv's kernel.
    """
    settings = Settings((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    output.copy_(deformable_convolution(settings, input, offset, None, weight))


def deform_conv_backward_input(input: Tensor, offset: Tensor, gradOutput: Tensor,  # noqa: N803
                               gradInput: Tensor, gradOffset: Tensor, weight: Tensor, columns: Tensor,  # noqa: N803
                               kW: int, kH: int, dW: int, dH: int, padW: int, padH: int,  # noqa: N803
                               dilationW: int, dilationH: int, group: int, deformable_group: int,  # noqa: N803
                               im2col_step: int) -> None:
    """Gradients by images and offsets, added to ``gradInput`` and ``gradOffset``; others as in the forward pass."""
    settings = Settings((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    convolve = functools.partial(_convolve, settings, weight)
    for target, gradient in zip((gradInput, gradOffset), gradients(convolve, (input, offset), gradOutput), strict=True):
        target.add_(gradient)


def deform_conv_backward_parameters(input: Tensor, offset: Tensor, gradOutput: Tensor,  # noqa: N803
                                    gradWeight: Tensor, columns: Tensor, ones: Tensor,  # noqa: N803
                                    kW: int, kH: int, dW: int, dH: int, padW: int, padH: int,  # noqa: N803
                                    dilationW: int, dilationH: int, group: int, deformable_group: int,  # noqa: N803
                                    scale: float, im2col_step: int) -> None:
    """Gradient by the weights times ``scale``, added to ``gradWeight``; others as in the forward pass."""
    settings = Settings((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    convolve = functools.partial(deformable_convolution, settings, input, offset, None)
    gradient, = gradients(convolve, (gradWeight,), gradOutput)  # linear in the weights: their values do not matter
    gradWeight.add_(gradient, alpha=scale)


def _convolve(settings: Settings, weight: Tensor, images: Tensor, offset: Tensor) -> Tensor:
    return deformable_convolution(settings, images, offset, None, weight)
