"""Boxes without a network: signal frame, noise, matching."""

from .box_refinement import refine_boxes
from .diffusion_box_sampler import DiffusionBoxSampler
from .dynamic_k_assigner import DynamicKAssigner
from .dynamic_k_matching import MatchCostWeights, match_queries
from .even_noise import even_noise
from .object_jitter import ObjectJitter
from .object_padding import image_sizes, pad_objects, repeat_objects
from .signal_bbox_coder import SignalBBoxCoder
from .size_bbox_coder import SizeBBoxCoder
from .start_noise import DrawNormal, global_noise, image_noise, with_proposals

__all__ = [
    'DiffusionBoxSampler', 'DrawNormal', 'DynamicKAssigner', 'MatchCostWeights', 'ObjectJitter', 'SignalBBoxCoder',
    'SizeBBoxCoder', 'even_noise', 'global_noise', 'image_noise', 'image_sizes', 'match_queries', 'pad_objects',
    'refine_boxes', 'repeat_objects', 'with_proposals'
]
