"""Network parts of a refinement stage."""

from .dynamic_conv import DynamicConv
from .linear import Linear
from .time_embedding import TimeEmbedding

__all__ = ['DynamicConv', 'Linear', 'TimeEmbedding']
