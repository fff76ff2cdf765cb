"""A linear layer that runs on oneDNN where that is faster."""

from torch import Tensor, nn

from ..ops import linear


class Linear(nn.Linear):
    """As ``torch.nn.Linear``, by :func:`mmdet_diffusion.ops.linear`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape (..., in_features) to (..., out_features)."""
        return linear(inputs, self.weight, self.bias)
