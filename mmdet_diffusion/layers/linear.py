"""A linear layer that runs on oneDNN where that is faster."""

from torch import Tensor, nn

from ..ops import linear


class Linear(nn.Linear):
    """As ``torch.nn.Linear``, by :func:`mmdet_diffusion.ops.linear`."""

    def forward(self, input: Tensor) -> Tensor:  # the name that torch's has
        """Shape (..., in_features) to (..., out_features)."""
        return linear(input, self.weight, self.bias)
