"""Optimiser wrappers."""

from .autocast_optim_wrapper import AutocastOptimWrapper
from .sharded_strategy import ShardedStrategy

__all__ = ['AutocastOptimWrapper', 'ShardedStrategy']
