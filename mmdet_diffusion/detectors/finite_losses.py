"""Losses that are not finite stop the training before they reach the weights, with the names of the images."""

import logging

import torch
from mmdet.structures import SampleList
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from torch import Tensor

MOST_LEFT_OUT = 50  # steps in a row; the loss scaler has halved its scale of 65536 to nothing by then


class FiniteLosses:
    """Looks at the losses of each training step.

    Attributes:
        left_out (int): steps in a row that the loss scaler left out.
    """

    def __init__(self) -> None:
        self.left_out = 0

    def check(self, losses: dict[str, Tensor | list[Tensor]], batch_data_samples: SampleList) -> None:
        """Stop all processes where a loss of one is not finite; one value is read from the device.

        In float16 under autocast a loss can leave the range, and the loss scaler then leaves out the step: a line says
        so, and :data:`MOST_LEFT_OUT` steps in a row stop the training, whose weights would never change again.

        Args:
            losses (dict[str, Tensor | list[Tensor]]): scalars; some of MMDetection's heads give one of each level.
            batch_data_samples (SampleList): their ``metainfo`` alone is used.

        Raises:
            FloatingPointError: names the losses and the images.
        """
        values = torch.stack([sum(part.mean() for part in (value if isinstance(value, list) else [value]))
                              .detach().float() for value in losses.values()])
        is_infinite = (~values.isfinite()).any().float()
        all_reduce(is_infinite, 'max')  # one process that stops would leave the others waiting
        if not is_infinite > 0:
            self.left_out = 0
            return
        fault = _fault(dict(zip(losses, values.tolist(), strict=True)), batch_data_samples)
        # By autocast; older torch cannot be asked by device.
        if values[:, None].mm(values[None]).dtype == torch.float16:
            self.left_out += 1
            if self.left_out < MOST_LEFT_OUT:
                print_log(f'{fault}. In float16 the loss scaler leaves out this step', 'current', logging.WARNING)
                return
            raise FloatingPointError(f'{fault}. So it was in {self.left_out} steps in a row, which the loss scaler '
                                     'left out: what the model computes leaves the range of float16. Train in bfloat16 '
                                     'or float32, or at a lower learning rate, from an earlier checkpoint')
        raise FloatingPointError(f'{fault}. The weights were not updated with them. Look at these images, train in '
                                 'float32 or lower optim_wrapper.clip_grad.max_norm, and go on with --resume; with '
                                 'another learning rate, start anew with load_from=the last checkpoint')


def _fault(values: dict[str, float], batch_data_samples: SampleList) -> str:
    wrong = ', '.join(f'{name} ({value})' for name, value in values.items() if not abs(value) < float('inf'))
    images = ', '.join(str(sample.metainfo.get('img_path', sample.metainfo.get('img_id', 'without a name')))
                       for sample in batch_data_samples)
    return (f'losses that are not finite: {wrong}; images of the batch: {images}' if wrong else
            'losses of another process are not finite')
