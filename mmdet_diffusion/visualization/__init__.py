"""Pictures of the way from noise to objects."""

from .box_paths import Moment, box_paths, follow_boxes, on_picture
from .path_drawing import draw_moment, draw_story, write_animation

__all__ = ['Moment', 'box_paths', 'draw_moment', 'draw_story', 'follow_boxes', 'on_picture', 'write_animation']
