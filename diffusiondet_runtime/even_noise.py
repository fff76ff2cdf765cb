"""Start boxes that are spread over their law: randomly shifted Sobol points, the same as torch's.

Sobol 1967; direction numbers of Joe & Kuo 2008 for the first four dimensions, which are those of torch.
"""

from functools import lru_cache

import numpy as np

from .frames import probability, quantile

BITS = 30
SMALLEST = 1e-6  # probability; the normal quantile of 0 is infinite
# Of each dimension after the first: degree and inner coefficients of its primitive polynomial, first direction numbers.
POLYNOMIALS = ((1, 0, (1, )), (2, 1, (1, 3)), (3, 1, (1, 3, 1)))


def even_noise(shift: np.ndarray, number: int) -> np.ndarray:
    """Start noise of a batch.

    Args:
        shift (np.ndarray): standard normal, float32, shape (B, 1, 4).
        number (int): N, of boxes.

    Returns:
        np.ndarray: float32, shape (B, N, 4); each value alone is standard normal.
    """
    points = (sobol_points(number) + probability(shift)) % np.float32(1)
    return quantile(np.clip(points, np.float32(SMALLEST), np.float32(1 - SMALLEST))).astype(np.float32)


@lru_cache(maxsize=8)
def sobol_points(number: int) -> np.ndarray:
    """The first N points of the unit cube in 4 dimensions, in Gray code's order, float32, shape (N, 4)."""
    directions = np.array([[1 << (BITS - 1 - bit) for bit in range(BITS)], *map(_directions, POLYNOMIALS)])
    points = np.zeros((number, len(directions)), dtype=np.int64)
    for index in range(1, number):
        lowest_zero = ~(index - 1) & index  # of the index before, as a power of two
        points[index] = points[index - 1] ^ directions[:, lowest_zero.bit_length() - 1]
    return (points * 2.0**-BITS).astype(np.float32)


def _directions(polynomial: tuple[int, int, tuple[int, ...]]) -> list[int]:
    """Direction numbers of a dimension, by the recurrence of its polynomial."""
    degree, inner, first = polynomial
    numbers = list(first)
    for index in range(degree, BITS):
        value = numbers[index - degree] ^ (numbers[index - degree] << degree)
        for place in range(1, degree):
            if inner >> (degree - 1 - place) & 1:
                value ^= numbers[index - place] << place
        numbers.append(value)
    return [value << (BITS - 1 - index) for index, value in enumerate(numbers)]
