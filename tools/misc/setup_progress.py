"""Run one step of the set-up: all of its output to a log, one line about it on the screen, a failure explained."""

from __future__ import annotations

import queue
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from check_environment import Fault

TAIL = 15  # lines of output shown with a failure of unknown cause

KNOWN_FAILURES = (
    (
        r'NewConnectionError|NameResolutionError|ConnectTimeoutError|ProxyError|Temporary failure in name resolution'
        r'|Network is unreachable|Max retries exceeded|Connection refused',
        'the package index cannot be reached. Cure: check the network and the proxy, or name a source that can be '
        'reached in PIP_INDEX_URL or PIP_FIND_LINKS',
    ),
    (
        r'No space left on device',
        'the disk is full. Cure: make room, or put the environment elsewhere with VENV=',
    ),
    (
        r'Killed signal terminated program|\(program cc1plus\)',
        'the compiler ran out of memory. Cure: make setup MAX_JOBS=1',
    ),
    (
        r'CUDA_HOME environment variable is not set|detected CUDA version .* mismatches',
        'this torch sees a GPU, but the CUDA compiler of its version is not here. Cure: install that CUDA toolkit and '
        'set CUDA_HOME, or hide the GPU to build for the CPU: CUDA_VISIBLE_DEVICES= make setup',
    ),
    (
        r'externally-managed-environment',
        'this Python belongs to the system. Cure: make setup without VENV= and PYTHON=',
    ),
    (
        r'Cannot install (?P<what>.+?) because these package versions have conflicting dependencies',
        '{what} does not fit the rest of what is asked for, or a constraint in your settings of pip (pip config list). '
        'Cure: another version, for torch in TORCH=, or without that constraint',
    ),
    (
        r'No matching distribution found for (?P<what>\S+)',
        '{what} is not to be had for this Python and machine. Cure: Python 3.11 in PYTHON=; for a torch: TORCH=',
    ),
)


def explain_failure(output: str) -> str:
    """One line with the cure where the cause is known, else the end of the output."""
    for pattern, explanation in KNOWN_FAILURES:
        match = re.search(pattern, output)
        if match:
            return explanation.format(**match.groupdict())
    return 'its last lines:\n  ' + '\n  '.join(output.strip().splitlines()[-TAIL:])


def parse_build_step(line: str) -> tuple[int, int] | None:
    """ninja's '[17/77] c++ ...' -> (17, 77)."""
    match = re.match(r'\s*\[(\d+)/(\d+)\] ', line)
    return (int(match[1]), int(match[2])) if match else None


def seconds_left(done: int, total: int, elapsed: float) -> float | None:
    """By the mean of the files so far. The first ones say little: None until three are done."""
    return elapsed / done * (total - done) if done >= 3 else None


def format_seconds(seconds: float) -> str:
    return f'{seconds:.0f} s' if seconds < 90 else f'{seconds / 60:.0f} min'


def build_status(line: str, elapsed: float) -> str | None:
    """Where a build by ninja is after a line of its output; None when the line says nothing about it."""
    step = parse_build_step(line)
    if step is None:
        return None
    done, total = step
    if done == total:
        return f'all {total} files compiled, linking and packing'
    left = seconds_left(done, total, elapsed)
    return f'{done} of {total} files, {done / total:.0%}' + (f', about {format_seconds(left)} left' if left else '')


def pip_status(line: str, elapsed: float) -> str | None:
    """Those of pip's lines that tell a user where it is."""
    starts = r'(Collecting|Downloading|Using cached|Installing collected packages|Building wheel)\b.*'
    match = re.match(starts, line.strip())
    return match[0] if match else None


class StatusLine:
    """One line that is rewritten on a terminal; elsewhere a new line every half minute."""

    def __init__(self, title: str, stream=None, interval: float = 30.0) -> None:
        self.title, self.stream, self.interval = title, stream or sys.stdout, interval
        self.start = self.shown = time.monotonic()
        self.text = 'started'

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def update(self, text: str | None = None) -> None:
        """Show ``text``, or with None the last one beside a clock that goes on."""
        self.text = text or self.text
        line = f'setup: {self.title}: {self.text} ({format_seconds(self.elapsed)})'
        if self.stream.isatty():
            self.stream.write('\r\033[K' + line[: shutil.get_terminal_size().columns - 1])
        elif time.monotonic() - self.shown >= self.interval:
            self.shown = time.monotonic()
            self.stream.write(line + '\n')
        self.stream.flush()

    def close(self, outcome: str) -> None:
        clear = '\r\033[K' if self.stream.isatty() else ''
        self.stream.write(f'{clear}setup: {self.title}: {outcome} after {format_seconds(self.elapsed)}\n')
        self.stream.flush()


def lines_of(process: subprocess.Popen, pause: float = 1.0):
    """Lines of a process's output; '' whenever there was none for a while, so that a clock can go on."""
    lines: queue.Queue[str | None] = queue.Queue()

    def pump() -> None:
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=pump, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=pause)
        except queue.Empty:
            line = ''
        if line is None:
            return
        yield line


def run_step(title: str, command: list, log: Path, status=pip_status, environ: dict[str, str] | None = None) -> str:
    """Run ``command`` and give its output, or raise with an explanation of its failure."""
    shown, output = StatusLine(title), []
    pipe = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True, 'errors': 'replace'}
    with log.open('a') as file, subprocess.Popen(command, cwd=log.parent, env=environ, **pipe) as process:
        file.write(f'\n$ {shlex.join(map(str, command))}\n')
        for line in lines_of(process):
            output.append(line)
            file.write(line)
            file.flush()
            shown.update(status(line, shown.elapsed))
    shown.close('failed' if process.returncode else 'done')
    if process.returncode:
        raise Fault(f'{title} failed: {explain_failure("".join(output))} (its whole output: {log})')
    return ''.join(output)
