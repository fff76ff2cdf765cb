"""AdamW that updates all parameters of a group in one call, wherever torch can."""

from mmdet.registry import OPTIMIZERS
from torch.optim import AdamW


@OPTIMIZERS.register_module()
class FusedAdamW(AdamW):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with torch's fused kernel, or else its ``foreach`` form.

    torch has the fused kernel for a CPU from 2.4 on and raises where it has none, so that ``fused=True`` in a config
    stops a training on an older one. Both forms keep the same states: a checkpoint of one is resumed by the other.

    Args:
        params (Iterable): parameters or groups of them, as of ``torch.optim.AdamW``.
        **settings: of ``torch.optim.AdamW``, but for ``fused`` and ``foreach``.
    """

    def __init__(self, params, **settings) -> None:
        params = list(params)  # an iterator would be empty at the second attempt
        try:
            super().__init__(_copied(params), fused=True, **settings)
        except RuntimeError:  # no kernel for the device; whatever else is wrong is raised again below
            super().__init__(_copied(params), foreach=True, **settings)

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, but the form is that of this optimiser: the checkpoint's may be one that there is not here."""
        form = {name: self.param_groups[0][name] for name in ('fused', 'foreach')}
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group.update(form)


def _copied(params: list) -> list:
    """Groups as new dicts: torch writes its settings into those that it is given."""
    return [dict(one) if isinstance(one, dict) else one for one in params]
