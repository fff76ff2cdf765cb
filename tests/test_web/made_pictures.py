"""Pictures to send."""

import io

import numpy as np
from PIL import Image


def picture(seed=0, size=(150, 90)):
    """A PNG file's content."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size).save(buffer, format='PNG')
    return buffer.getvalue()
