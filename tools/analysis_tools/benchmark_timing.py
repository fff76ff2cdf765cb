"""Clock and surroundings of a measurement: sides in turn, medians, and what they were measured on."""

import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import NamedTuple

import mmcv
import mmdet
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
WARM_UP = 1  # calls of each side before the clock runs


class Samples(NamedTuple):
    """Repeated measurements of one thing.

    Attributes:
        values (tuple[float, ...]): in the order of measurement.
        unit (str): ``s`` or ``MiB``.
    """

    values: tuple[float, ...]
    unit: str = 's'

    @property
    def median(self) -> float:
        """Middle value."""
        return median(self.values)

    def scaled(self, factor: float) -> 'Samples':
        """The same for ``factor`` times as much work."""
        return self._replace(values=tuple(value * factor for value in self.values))

    def plus(self, other: 'Samples') -> 'Samples':
        """The same with other work after it, measured in turn with it."""
        return self._replace(values=tuple(map(sum, zip(self.values, other.values, strict=True))))

    def text(self) -> str:
        """Median and range."""
        low, high = min(self.values), max(self.values)
        return f'{self.median:.4g} {self.unit} ({low:.4g}-{high:.4g})'


def interleave(sides: Sequence[Callable[[], object]], repetitions: int, device: torch.device) -> list[Samples]:
    """Time several sides in turn, so that a disturbance hits all of them.

    Args:
        sides (Sequence[Callable[[], object]]): what to time; called without arguments.
        repetitions (int): timed calls of each; every second round goes through the sides backwards.
        device (torch.device): waited for before the clock is read.

    Returns:
        list[Samples]: seconds of each side.
    """
    for side in sides:
        for _ in range(WARM_UP):
            side()
    samples = [[] for _ in sides]
    for repetition in range(repetitions):
        order = list(zip(samples, sides, strict=True))
        for values, side in order[::-1] if repetition % 2 else order:
            values.append(_seconds(side, device))
    return [Samples(tuple(values)) for values in samples]


def _seconds(side: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    side()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def paired_ratio(numerator: Samples, denominator: Samples) -> float:
    """Median of the ratios of values that were measured side by side."""
    return median(top / bottom for top, bottom in zip(numerator.values, denominator.values, strict=True))


def environment(device: torch.device, *, keeps_memory: bool) -> dict[str, str]:
    """What a measurement was made on; ``keeps_memory`` as :func:`keep_freed_memory` told."""
    found = dict(
        date=datetime.now().astimezone().isoformat(timespec='seconds'), commit=_commit(), device=str(device),
        cpu=_cpu_name(), cores=str(os.cpu_count()), threads=str(torch.get_num_threads()),
        python=platform.python_version(), torch=torch.__version__, mmcv=mmcv.__version__, mmdet=mmdet.__version__)
    found['freed memory'] = 'kept' if keeps_memory else 'left to the C library'
    if hasattr(os, 'getloadavg'):
        found['load of the last minute'] = f'{os.getloadavg()[0]:.2f}'
    if device.type == 'cuda':
        found.update(gpu=torch.cuda.get_device_name(device), cuda=str(torch.version.cuda))
    return found


def _cpu_name() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    """Commit of the project, with a plus sign where files differ from it."""
    git = ['git', '-C', str(REPOSITORY)]
    try:
        commit = subprocess.run([*git, 'rev-parse', '--short=12', 'HEAD'], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, 'status', '--porcelain'], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
    return commit.stdout.strip() + ('+' if changes.stdout.strip() else '')
