"""Optimisers and their wrappers."""

from .autocast_optim_wrapper import AutocastOptimWrapper
from .fused_adamw import FusedAdamW
from .sharded_strategy import ShardedStrategy

__all__ = ['AutocastOptimWrapper', 'FusedAdamW', 'ShardedStrategy']
