"""``train_cfg`` of the head, checked: noise groups (after Group DETR, Chen et al. 2022, arXiv:2207.13085)."""

from typing import NamedTuple

from mmdet.utils import OptConfigType

from ..number_checks import is_integer
from ..sampling_settings import known_values


class TrainingSettings(NamedTuple):
    """How a training batch is drawn.

    A group is one more independent draw of diffusion step, noise and padding for each image. Groups share the
    features of backbone and neck and the weights of the head, attend to their own boxes alone and are matched on
    their own, so each is a full training sample of the head for the price of the head.

    Attributes:
        num_groups (int): G, draws an image and training step; their diffusion steps are spread evenly, one in each G-th
            of the range. 1: the paper's training.
    """

    num_groups: int = 1

    @classmethod
    def from_cfg(cls, train_cfg: OptConfigType) -> 'TrainingSettings':
        """Read and check a ``train_cfg``.

        Args:
            train_cfg (OptConfigType): the config's; None stands for the defaults.

        Returns:
            TrainingSettings: see there.

        Raises:
            ValueError: if a key is unknown or a value out of range; names the key, the value and what is allowed.
        """
        settings = cls(**known_values(train_cfg, cls._fields, 'train_cfg'))
        value = settings.num_groups
        if not is_integer(value) or value < 1:
            raise ValueError(f'train_cfg.num_groups must be an integer of at least 1, got {value!r}')
        return settings
