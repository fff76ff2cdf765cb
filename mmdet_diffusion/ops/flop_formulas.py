"""Floating-point operations, for torch's ``FlopCounterMode``, of operators that the head runs and torch has none for.

A multiplication and an addition count as one each, as in torch's own formulas, which take shapes in place of tensors.
"""

import math

import torch
from torch.utils import flop_counter


def linear_pointwise_flop(inputs, weight, *args, **kwargs) -> int:
    """Of oneDNN's linear layer: ``inputs`` (..., I), ``weight`` (O, I)."""
    return 2 * math.prod(inputs) * weight[0]


def weighted_embedding_bag_flop(weight, indices, offsets, scale_grad_by_freq=False, mode=0, sparse=False,
                                per_sample_weights=None, *args, **kwargs) -> int:
    """Of a sum of weighted rows of ``weight`` (R, C). Without weights it counts as nothing, as torch has it."""
    return 2 * math.prod(indices) * weight[1] if per_sample_weights is not None else 0


def native_attention_flop(query, key, value, embed_dim, *args, **kwargs) -> int:
    """Of the fused attention that ``nn.MultiheadAttention`` takes without gradients: ``query`` (B, N, E)."""
    batch, queries, _ = query
    keys = key[1]
    projections = batch * (2 * queries + 2 * keys) * embed_dim * embed_dim
    return 2 * (projections + 2 * batch * queries * keys * embed_dim)


def cpu_attention_flop(query, key, value, *args, **kwargs) -> int:
    """Of the fused attention of a CPU: ``query`` (B, heads, N, E), ``key`` (B, heads, M, E)."""
    return 4 * math.prod(query) * key[-2]


def cpu_attention_backward_flop(grad_output, query, key, *args, **kwargs) -> int:
    """Of its gradients: the scores again, and two products for each of the forward pass."""
    return 10 * math.prod(query) * key[-2]


FORMULAS = (
    ('mkldnn', '_linear_pointwise', linear_pointwise_flop),
    ('aten', '_embedding_bag', weighted_embedding_bag_flop),
    ('aten', '_embedding_bag_forward_only', weighted_embedding_bag_flop),
    ('aten', '_native_multi_head_attention', native_attention_flop),
    ('aten', '_scaled_dot_product_flash_attention_for_cpu', cpu_attention_flop),
    ('aten', '_scaled_dot_product_flash_attention_for_cpu_backward', cpu_attention_backward_flop),
)


def register_flop_formulas() -> None:
    """Tell torch's counter the formulas that it lacks; one that a later torch has stays."""
    known = getattr(flop_counter, 'flop_registry', None)  # torch 2.2
    if known is None:
        known = flop_counter.flop_mapping
    for namespace, name, formula in FORMULAS:
        operator = getattr(getattr(torch.ops, namespace), name, None)
        if operator is None or operator in known:
            continue
        if hasattr(flop_counter, 'register_flop_formula'):
            flop_counter.register_flop_formula(operator)(formula)
        else:
            known[operator] = formula
