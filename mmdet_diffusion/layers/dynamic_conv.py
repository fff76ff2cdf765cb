"""Interaction of proposals with their RoI features. Sun et al. 2021 (Sparse R-CNN), arXiv:2011.12450, Sec. 3.3."""

import torch
from torch import Tensor, nn

from ..ops import is_recorded

# Filters written at once on a CPU, where no gradient needs them later: glibc keeps freed blocks below 32 MiB for reuse,
# while larger ones are fetched from the system each time, page by page.
PIECE_BYTES = 2**25


class DynamicConv(nn.Module):
    """Filters each proposal's RoI feature with two 1x1 convolutions that its proposal feature writes.

    Args:
        feat_channels (int): channels C of RoI and proposal features.
        dynamic_channels (int): channels D between the two convolutions.
        num_bins (int): bins P of a RoI feature, 49 for 7 x 7.
    """

    def __init__(self, feat_channels: int, dynamic_channels: int, num_bins: int) -> None:
        super().__init__()
        self.feat_channels, self.dynamic_channels = feat_channels, dynamic_channels
        self.dynamic_layer = nn.Linear(feat_channels, 2 * feat_channels * dynamic_channels)
        self.norm_in = nn.LayerNorm(dynamic_channels)
        self.norm_out = nn.LayerNorm(feat_channels)
        self.fc = nn.Linear(num_bins * feat_channels, feat_channels)
        self.norm_fc = nn.LayerNorm(feat_channels)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, proposal_features: Tensor, roi_features: Tensor) -> Tensor:
        """Run the interaction.

        Args:
            proposal_features (Tensor): shape (K, C).
            roi_features (Tensor): bins before channels, shape (K, P, C).

        Returns:
            Tensor: shape (K, C).
        """
        whole = torch.is_grad_enabled() or is_recorded()
        if whole or proposal_features.device.type != 'cpu':
            return self._interact(proposal_features, roi_features)
        filters = self.dynamic_layer.out_features * proposal_features.element_size()
        rows = max(1, (PIECE_BYTES - 1) // filters)
        pieces = zip(proposal_features.split(rows), roi_features.split(rows), strict=True)
        return torch.cat([self._interact(*piece) for piece in pieces])

    def _interact(self, proposal_features: Tensor, roi_features: Tensor) -> Tensor:
        to_dynamic, to_feature = self.dynamic_layer(proposal_features).chunk(2, dim=-1)
        features = roi_features @ to_dynamic.unflatten(-1, (self.feat_channels, self.dynamic_channels))
        features = self.activation(self.norm_in(features))
        features = features @ to_feature.unflatten(-1, (self.dynamic_channels, self.feat_channels))
        features = self.activation(self.norm_out(features))
        return self.activation(self.norm_fc(self.fc(features.flatten(1))))
