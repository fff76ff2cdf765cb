"""How much memory there is, a setting needs and a process has taken. Linux ends a process that takes too much."""

import bisect
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import ExportError

GROUPS = Path('/sys/fs/cgroup')
OWN_GROUPS = Path('/proc/self/cgroup')
# Files of a control group: limit, what is taken, and the row of memory.stat with pages that can be given up.
GROUP_FILES = (('memory.max', 'memory.current', 'inactive_file'),
               ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file'))  # version 1


def available_bytes() -> int | None:
    """What the system, and the container that this process may be in, can give now; None where they do not say."""
    return min((value for value in (_of_system(), *_of_groups()) if value is not None), default=None)


def _of_system() -> int | None:
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


def _of_groups() -> Iterator[int]:
    """What is left in each control group with a limit (Linux) that this process is in, those above it among them."""
    try:
        own = [line.split(':', 2) for line in OWN_GROUPS.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, name in own:
        if controllers and 'memory' not in controllers.split(','):
            continue
        root = GROUPS / 'memory' if controllers else GROUPS
        folder = root / name.strip('/')
        for group in (folder, *folder.parents):  # a container may see its own group alone, as the root
            for files in GROUP_FILES:
                left = _left(group, *files)
                if left is not None:
                    yield left
            if group == root:
                break


def _left(group: Path, limit: str, taken: str, freeable: str) -> int | None:
    try:
        most, now = (int((group / name).read_text()) for name in (limit, taken))
        statistics = dict(line.split() for line in (group / 'memory.stat').read_text().splitlines())
        return max(0, most - now + int(statistics[freeable]))
    except (OSError, KeyError, ValueError):  # no such group, or no limit
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
