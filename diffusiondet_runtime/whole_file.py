"""Files that are there as a whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_NAME = 255  # bytes


def unfinished_name(path: Path) -> Path:
    """Beside a file, while it is written; no longer than file systems take, where that file's own name is not."""
    end = f'-{os.getpid()}{path.suffix}'
    stem = os.fsencode(path.stem)[:LONGEST_NAME - len(os.fsencode(f'.{end}'))]
    return path.with_name(f'.{stem.decode(errors="ignore")}{end}')


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes ``path`` at the end, all of it or nothing."""
    unfinished = unfinished_name(path)
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
