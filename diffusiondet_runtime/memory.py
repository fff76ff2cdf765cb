"""How much memory there is, a setting needs and a process has taken. Linux ends a process that takes too much."""

import bisect
import os

from .errors import ExportError


def available_bytes() -> int | None:
    """What the system can give now; None where it does not say."""
    try:
        with open('/proc/meminfo', encoding='ascii') as file:
            rows = dict(line.split(':') for line in file)
        return int(rows['MemAvailable'].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (AttributeError, OSError, ValueError):
        return None


def peak_bytes() -> int:
    """Highest resident memory of this process so far.

    On Linux from ``/proc``: ``getrusage`` there begins with the size of the process that started this one.
    """
    try:
        with open('/proc/self/status', encoding='ascii') as status:
            return next(int(line.split()[1]) for line in status if line.startswith('VmHWM')) * 1024
    except (OSError, StopIteration):
        import resource  # not on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def refuse_too_many(pictures: int, boxes: int, limits: dict) -> None:
    """Stop where a step would need more memory than there is.

    Args:
        pictures (int): B.
        boxes (int): N.
        limits (dict): of the exported folder: ``bytes_per_box``, and ``bytes_per_pair`` of boxes of a picture.

    Raises:
        ExportError: says how much is needed, how much is there, and how many boxes fit.
    """
    available = available_bytes()

    def needed(number: int) -> int:
        return pictures * number * (limits['bytes_per_box'] + number * limits['bytes_per_pair'])

    if available is not None and needed(boxes) > available:
        fitting = bisect.bisect_right(range(boxes), available, key=needed) - 1
        cure = f'take at most {fitting}' if fitting else 'take fewer pictures at once' if pictures > 1 else 'free some'
        raise ExportError(f'{boxes} boxes on {pictures} picture(s) need about {needed(boxes) / 2**30:.1f} GiB of '
                          f'memory, {available / 2**30:.1f} GiB are free; {cure}')
