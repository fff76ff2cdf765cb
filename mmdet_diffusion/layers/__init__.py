"""Network parts of a refinement stage."""

from .dynamic_conv import DynamicConv
from .time_embedding import TimeEmbedding

__all__ = ['DynamicConv', 'TimeEmbedding']
