"""A page on which to turn the dial of a trained detector."""

from .page_server import PageServer
from .picture_dial import PictureDial, UnknownPicture

__all__ = ['PageServer', 'PictureDial', 'UnknownPicture']
