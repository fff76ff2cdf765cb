"""Losses that are not finite stop the training before they reach the weights, with the names of the images."""

import logging

import torch
from mmdet.structures import SampleList
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from torch import Tensor


def refuse_infinite_losses(losses: dict[str, Tensor | list[Tensor]], batch_data_samples: SampleList) -> None:
    """Stop all processes where a loss of one is not finite; one value is read from the device.

    In float16 under autocast a loss can leave the range, and the loss scaler then leaves out the step: a line says so.

    Args:
        losses (dict[str, Tensor | list[Tensor]]): scalars; some of MMDetection's heads give one of each level.
        batch_data_samples (SampleList): their ``metainfo`` alone is used.

    Raises:
        FloatingPointError: names the losses and the images.
    """
    values = torch.stack([sum(part.mean() for part in (value if isinstance(value, list) else [value])).detach().float()
                          for value in losses.values()])
    is_infinite = (~values.isfinite()).any().float()
    all_reduce(is_infinite, 'max')  # one process that stops would leave the others waiting
    if not is_infinite > 0:
        return
    wrong = ', '.join(f'{name} ({value})' for name, value in zip(losses, values.tolist(), strict=True)
                      if not abs(value) < float('inf'))
    images = ', '.join(str(sample.metainfo.get('img_path', sample.metainfo.get('img_id', 'without a name')))
                       for sample in batch_data_samples)
    fault = (f'losses that are not finite: {wrong}; images of the batch: {images}' if wrong else
             'losses of another process are not finite')
    if values[:, None].mm(values[None]).dtype == torch.float16:  # by autocast; older torch cannot be asked by device
        print_log(f'{fault}. In float16 the loss scaler leaves out this step', 'current', logging.WARNING)
        return
    raise FloatingPointError(f'{fault}. The weights were not updated with them. Look at these images, train in float32 '
                             'or lower optim_wrapper.clip_grad.max_norm, and go on with --resume; with another '
                             'learning rate, start anew with load_from=the last checkpoint')
