"""What there is to look at: pictures by name, folder or glob; videos, cameras and streams, frame by frame."""

import glob
import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

PICTURES = {'.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'}
VIDEOS = {'.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv'}
MOST_BROKEN = 25  # frames in a row that cannot be read, after which the rest of a video is given up
PATIENCE = 10.0  # seconds in which a camera or a stream that gives no frame any more is opened again and again


class Video(NamedTuple):
    """A video file, a camera or a stream.

    Attributes:
        source (str): as it was given: a path, the number of a camera, or an address.
        is_live (bool): it has no end of its own.
    """

    source: str
    is_live: bool

    @property
    def name(self) -> str:
        """That its draws and its drawn frames go by."""
        if not self.is_live:
            return Path(self.source).name
        return f'camera_{self.source}' if self.source.isdigit() else 'stream'


class Sources(NamedTuple):
    """What a command line names.

    Attributes:
        items (list[Path | Video]): each once, in the order given; pictures of a folder or glob sorted.
        failed (dict[str, str]): reason by source that leads to nothing.
    """

    items: list
    failed: dict[str, str]


class VideoFrames:
    """Frames of a video, read as they are asked for; a context manager.

    Args:
        video (Video): see there.

    Attributes:
        video (Video): which.
        rate (float): frames a second, as the file says; 25 where it does not.
        number (int | None): frames, as the file says, a file at an address too; None for what does not say.
        broken (list[int]): places of frames that could not be read.
        is_lost (bool): it was live and has given no frame for ``PATIENCE`` seconds.

    Raises:
        OSError: if it cannot be opened, or OpenCV, which reads it, is not installed; with the cure.
    """

    def __init__(self, video: Video) -> None:
        cv2, self.video = opencv(), video
        self.source = int(video.source) if video.is_live and video.source.isdigit() else video.source
        self.capture = cv2.VideoCapture(self.source)
        if not self.capture.isOpened():
            raise OSError('cannot be opened as a video' if not video.is_live else 'does not answer')
        self.rate = self.capture.get(cv2.CAP_PROP_FPS) or 25.0
        number = int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.number = number if number > 0 else None
        self.broken: list[int] = []
        self.is_lost = False

    def __enter__(self) -> 'VideoFrames':
        return self

    def __exit__(self, *error: object) -> None:
        self.capture.release()

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Place from 0, and pixels as uint8 RGB of shape (h, w, 3)."""
        place, in_a_row = 0, 0
        while True:
            is_read, frame = self.capture.read()
            if not is_read and self.video.is_live and self.number is None:
                is_read, frame = self._read_again()
                self.is_lost = not is_read
            if is_read:
                in_a_row = 0
                yield place, np.ascontiguousarray(frame[..., ::-1])
            elif self.number is None or place >= self.number or in_a_row == MOST_BROKEN:
                return
            else:
                in_a_row += 1
                self.broken.append(place)
            place += 1

    def _read_again(self) -> tuple[bool, np.ndarray | None]:
        """A frame of what is live after it gave none: senders start anew, networks come back."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            self.capture.open(self.source)
            is_read, frame = self.capture.read()
            if is_read:
                return True, frame
            time.sleep(0.5)
        return False, None


def opencv() -> ModuleType:
    """OpenCV, which nothing but videos needs; OSError with the cure where it is not installed."""
    try:
        return importlib.import_module('cv2')
    except ImportError as error:
        raise OSError('videos need OpenCV. Cure: pip install opencv-python-headless') from error


def find_sources(words: list[str]) -> Sources:
    """Pictures and videos by name, in folders (not in folders inside) and by globs (``**`` goes into folders).

    A number that is no file is a camera; what has ``://`` is the address of a stream.
    """
    items, failed = [], {}
    for word in words:
        path = Path(word)
        if '://' in word or (word.isdigit() and not path.exists()):
            items.append(Video(word, is_live=True))
            continue
        if path.is_file():
            found = [path]
        elif path.is_dir():
            found = sorted(file for file in path.iterdir()
                           if file.is_file() and file.suffix.lower() in PICTURES | VIDEOS)
        else:
            found = sorted(file for file in map(Path, glob.glob(word, recursive=True)) if file.is_file())
        if not found:
            failed[word] = 'a folder without pictures or videos' if path.is_dir() else 'not there'
        items += [Video(str(file), is_live=False) if file.suffix.lower() in VIDEOS else file for file in found]
    return Sources(list(dict.fromkeys(items)), failed)
