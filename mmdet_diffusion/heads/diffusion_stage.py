"""One refinement stage. arXiv:2211.09788, Sec. 3.2, after that of Sparse R-CNN (arXiv:2011.12450, Sec. 3.3)."""

from mmdet.registry import MODELS
from mmdet.utils import OptMultiConfig
from mmengine.model import BaseModule, bias_init_with_prob
from torch import Tensor, nn

from ..layers import DynamicConv
from ..ops import fast_linear, float32_on_cpu


@MODELS.register_module()
class DynamicDiffusionStage(BaseModule):
    """Attention among proposals, dynamic convolution with their RoI features, FFN, time, two branches.

    ``num_classes``, ``feat_channels``, ``num_bins`` and ``prior_prob`` come from the head, which builds its stages.

    Args:
        num_classes (int): C.
        feat_channels (int): channels F of proposal and RoI features.
        num_bins (int): bins P of a RoI feature.
        prior_prob (float): class probability at the start of training.
        num_attn_heads (int): of the self-attention.
        feedforward_channels (int): hidden channels of the FFN.
        dynamic_dim (int): channels between the two dynamic convolutions.
        num_cls_fcs (int): layers before the class logits.
        num_reg_fcs (int): layers before the deltas.
        init_cfg (OptMultiConfig): of mmengine's ``BaseModule``; applied last, so it can override any layer's weights.

    Raises:
        ValueError: if a number is out of range, or ``feat_channels`` not a multiple of ``num_attn_heads``.
    """

    def __init__(self, *, num_classes: int, feat_channels: int, num_bins: int, prior_prob: float,
                 num_attn_heads: int = 8, feedforward_channels: int = 2048, dynamic_dim: int = 64,
                 num_cls_fcs: int = 1, num_reg_fcs: int = 3, init_cfg: OptMultiConfig = None) -> None:
        super().__init__(init_cfg=init_cfg)
        sizes = dict(num_attn_heads=num_attn_heads, feedforward_channels=feedforward_channels, dynamic_dim=dynamic_dim)
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'{name} of the stage must be an integer of at least 1, got {value!r}')
        for name, value in dict(num_cls_fcs=num_cls_fcs, num_reg_fcs=num_reg_fcs).items():
            if not isinstance(value, int) or value < 0:
                raise ValueError(f'{name} of the stage must be an integer of at least 0, got {value!r}')
        if feat_channels % num_attn_heads:
            raise ValueError(f'feat_channels ({feat_channels}) must be a multiple of num_attn_heads '
                             f'({num_attn_heads}) in the stage')
        self.prior_prob = prior_prob
        self.self_attn = nn.MultiheadAttention(feat_channels, num_attn_heads, batch_first=True)
        self.norm_attn = nn.LayerNorm(feat_channels)
        self.dynamic_conv = DynamicConv(feat_channels, dynamic_dim, num_bins)
        self.norm_dynamic = nn.LayerNorm(feat_channels)
        self.ffn = nn.Sequential(
            nn.Linear(feat_channels, feedforward_channels), nn.ReLU(inplace=True),
            nn.Linear(feedforward_channels, feat_channels))
        self.norm_ffn = nn.LayerNorm(feat_channels)
        self.time_mlp = nn.Sequential(nn.SiLU(), nn.Linear(4 * feat_channels, 2 * feat_channels))
        self.cls_fcs = _branch(num_cls_fcs, feat_channels)
        self.reg_fcs = _branch(num_reg_fcs, feat_channels)
        self.fc_cls = nn.Linear(feat_channels, num_classes)
        self.fc_reg = nn.Linear(feat_channels, 4)

    def init_weights(self) -> None:
        """Xavier-uniform matrices; class bias at the prior."""
        if not self.is_init:
            xavier_uniform_linears(self)
            nn.init.constant_(self.fc_cls.bias, bias_init_with_prob(self.prior_prob))
        super().init_weights()

    def forward(self, roi_features: Tensor, proposal_features: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the stage.

        Args:
            roi_features (Tensor): shape (B * N, P, F).
            proposal_features (Tensor): shape (B, N, F).
            time (Tensor): shared time embedding, shape (B, 4 F).

        Returns:
            tuple[Tensor, Tensor, Tensor]: class logits (B, N, C), deltas (B, N, 4), and the proposal features of the
            next stage (B, N, F), which are those before the scale and shift.
        """
        with float32_on_cpu():  # where gradients of attention among a hundred take three times as long in bfloat16
            proposals = proposal_features.to(self.norm_attn.weight.dtype)
            attended = self.self_attn(proposals, proposals, proposals, need_weights=False)[0]
        features = self.norm_attn(proposal_features + attended)
        with fast_linear(features):  # not around the attention, which would lose its fused path to it
            interaction = self.dynamic_conv(features.flatten(0, 1), roi_features).view_as(features)
            features = self.norm_dynamic(features + interaction)
            features = self.norm_ffn(features + self.ffn(features))
            scale, shift = self.time_mlp(time)[:, None].chunk(2, dim=-1)
            timed = features * (1 + scale) + shift
            return self.fc_cls(self.cls_fcs(timed)), self.fc_reg(self.reg_fcs(timed)), features


def _branch(num_fcs: int, channels: int) -> nn.Sequential:
    layers = []
    for _ in range(num_fcs):
        layers += [nn.Linear(channels, channels, bias=False), nn.LayerNorm(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def xavier_uniform_linears(module: nn.Module) -> None:
    """Initialise the matrix of every linear layer and attention in ``module`` (biases keep torch's own)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
        elif isinstance(layer, nn.MultiheadAttention):
            nn.init.xavier_uniform_(layer.in_proj_weight)
