"""``train_cfg`` of the head, checked: noise groups (after Group DETR, Chen et al. 2022, arXiv:2207.13085)."""

from typing import NamedTuple

from mmdet.utils import OptConfigType


class TrainingSettings(NamedTuple):
    """How a training batch is drawn.

    A group is one more independent draw of diffusion step, noise and padding for each image. Groups share the
    features of backbone and neck and the weights of the head, attend to their own boxes alone and are matched on
    their own, so each is a full training sample of the head for the price of the head.

    Attributes:
        num_groups (int): G, draws an image and training step. 1: the paper's training.
        num_start_groups (int): how many of them are drawn at the last diffusion step, from which sampling starts; the
            steps of the others are spread evenly, one in each part of the range.
    """

    num_groups: int = 1
    num_start_groups: int = 0

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
        values = dict(train_cfg or {})
        unknown = sorted(set(values) - set(cls._fields))
        if unknown:
            raise ValueError(f'unknown key in train_cfg: {", ".join(unknown)}; there are {", ".join(cls._fields)}')
        settings = cls(**values)
        for key, least in dict(num_groups=1, num_start_groups=0).items():
            value = getattr(settings, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f'train_cfg.{key} must be an integer of at least {least}, got {value!r}')
        if settings.num_start_groups > settings.num_groups:
            raise ValueError(f'train_cfg.num_start_groups ({settings.num_start_groups}) counts some of '
                             f'train_cfg.num_groups ({settings.num_groups}) and cannot be more')
        return settings
