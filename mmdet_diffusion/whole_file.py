"""Files that are there as a whole or not at all."""

import os
from pathlib import Path


def write_whole_file(path: Path, content: bytes) -> None:
    """Write beside ``path`` and rename, so that a run that ends in between leaves what was there before.

    Args:
        path (Path): whose folder is there.
        content (bytes): all of it.

    Raises:
        OSError: if it cannot be written; nothing is left beside it then.
    """
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
