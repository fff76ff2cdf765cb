"""Files that are there as a whole or not at all."""

from pathlib import Path

from diffusiondet_runtime.whole_file import whole_file


def write_whole_file(path: Path, content: bytes) -> None:
    """Write beside ``path`` and rename, so that a run that ends in between leaves what was there before.

    Args:
        path (Path): whose folder is there.
        content (bytes): all of it.

    Raises:
        OSError: if it cannot be written; nothing is left beside it then.
    """
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content)
