"""The draws that torch makes for a seed and an image, in numpy.

With ``test_cfg.seed`` set, a picture's noise in torch is that of a CPU generator, seeded from a hash of seed and
name. That is a Mersenne Twister (Matsumoto & Nishimura 1998) of 32 bits, which numpy has too, whose 24 lower bits make
a uniform number, and the transform of Box & Muller (1958) over blocks of 16. So a seed gives the same boxes on both
sides, and noise recorded on one can be drawn again on the other. The logarithm and the cosine may differ in the last
digit of a float32; nothing else does.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np

from .errors import ExportError, first_line

DrawNormal = Callable[[int], np.ndarray]
"""Takes a number of boxes N, gives standard normal float32 values of shape (B, N, 4)."""

BLOCK = 16  # values that torch transforms together; of fewer it makes each by itself


class TorchGenerator:
    """Normal draws of ``torch.Generator().manual_seed(seed)`` on the CPU.

    Args:
        seed (int): of which the generator takes the lower 32 bits, as torch's does.
    """

    def __init__(self, seed: int) -> None:
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)
        self._kept: float | None = None

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """As ``torch.randn(shape, generator=...)``: standard normal, float32."""
        number = math.prod(shape)
        values = self._blocks(number) if number >= BLOCK else self._one_by_one(number)
        return values.astype(np.float32).reshape(shape)

    def _blocks(self, number: int) -> np.ndarray:
        uniform = self._uniform(number)
        whole = number - number % BLOCK
        values = np.empty(number, dtype=np.float32)
        values[:whole] = _of_blocks(uniform[:whole])
        if whole < number:  # the last block overlaps the one before it, and is drawn anew
            values[-BLOCK:] = _of_blocks(self._uniform(BLOCK))
        return values

    def _one_by_one(self, number: int) -> np.ndarray:
        values = np.empty(number)
        for index in range(number):
            if self._kept is None:
                values[index], self._kept = self._pair()
            else:
                values[index], self._kept = self._kept, None
        return values

    def _pair(self) -> tuple[float, float]:
        high_and_low = self._bits(4).astype(np.uint64).reshape(2, 2)
        angle, other = ((high_and_low[:, 0] << np.uint64(32) | high_and_low[:, 1]) & np.uint64(2**53 - 1)) * 2.0**-53
        radius = math.sqrt(-2 * math.log1p(-other))
        return radius * math.cos(2 * math.pi * angle), radius * math.sin(2 * math.pi * angle)

    def _uniform(self, number: int) -> np.ndarray:
        return (self._bits(number) & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2.0**-24)

    def _bits(self, number: int) -> np.ndarray:
        return self._twister.randint(0, 2**32, number, dtype=np.uint32)


def _of_blocks(uniform: np.ndarray) -> np.ndarray:
    """Box & Muller in float32, as torch: of each block the first half gives radii, the second angles."""
    first, second = uniform.reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)
    radius, angle = np.sqrt(np.float32(-2) * np.log(np.float32(1) - first)), np.float32(2 * np.pi) * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def image_seed(seed: int, name: str) -> int:
    """Seed of a picture's generator, of 63 bits: a hash of ``seed`` and the picture's name."""
    digest = hashlib.blake2b(f'{seed}:{name}'.encode('utf-8', 'surrogateescape'), digest_size=8).digest()
    return int.from_bytes(digest, 'big') >> 1


def image_noise(seed: int, names: Sequence[str]) -> DrawNormal:
    """Draws that depend on nothing but the seed and the picture's name, as those of ``test_cfg.seed`` in torch.

    Args:
        seed (int): any integer.
        names (Sequence[str]): of each picture of the batch; ``img_id`` in torch.

    Returns:
        DrawNormal: see there.
    """
    generators = [TorchGenerator(image_seed(seed, name)) for name in names]
    return lambda number: np.stack([generator.normal((number, 4)) for generator in generators])


def as_array(noise: np.ndarray) -> np.ndarray:
    """Given noise in float32; ExportError where it is no array of numbers."""
    try:
        return np.asarray(noise, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ExportError(f'noise must be an array of numbers ({first_line(error)})') from error


def given_noise(noise: np.ndarray, boxes: int) -> DrawNormal:
    """Draws from an array.

    Args:
        noise (np.ndarray): in the order in which they are taken, shape (draws, B, N, 4): first the start boxes, then at
            each step but the last the noise of DDIM and, where boxes are renewed, that of the renewed ones.
        boxes (int): N.

    Returns:
        DrawNormal: see there.

    Raises:
        ExportError: if the array has another form; at a draw, if it has no more.
    """
    noise = as_array(noise)
    if noise.ndim != 4 or noise.shape[2:] != (boxes, 4):
        raise ExportError(f'noise must have the shape (draws, pictures, {boxes}, 4), got {noise.shape}')
    draws = iter(noise)

    def draw(number: int) -> np.ndarray:
        values = next(draws, None)
        if values is None:
            raise ExportError(f'noise holds {len(noise)} draws, and sampling needs more: one to start from, and at '
                              'each step but the last one, or two where boxes are renewed')
        return values

    return draw
