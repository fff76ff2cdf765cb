"""What there is to look at: pictures by name, folder or glob; videos, cameras and streams, frame by frame."""

import glob
import importlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

PICTURES = {'.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'}
VIDEOS = {'.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv'}
COUNTED = {'.avi', '.m4v', '.mov', '.mp4'}  # containers that count their frames; of others it is a guess by the length
MOST_BROKEN = 25  # frames in a row that cannot be read, after which the rest of a video is given up
PATIENCE = 10.0  # seconds in which a camera or a stream that gives no frame any more is opened again and again
STREAMS = {'rtmp', 'rtp', 'rtsp', 'rtsps', 'srt', 'tcp', 'udp'}  # whose end is a fault; http may well be that of a file


class Video(NamedTuple):
    """A video file, a camera or a stream.

    Attributes:
        source (str): as it was given: a path, the number of a camera, or an address.
        is_live (bool): it is no file here.
    """

    source: str
    is_live: bool

    @property
    def has_no_end(self) -> bool:
        """Whether it is a camera, or a stream by its scheme."""
        return self.is_live and (self.source.isdigit() or self.source.split('://')[0].lower() in STREAMS)

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
        number (int | None): frames, as the container says, also at an address; None where it does not say.
        broken (list[int]): places of frames that could not be read. A few at the end, of a container that guesses how
            many there are, are none.
        silence (float): seconds without a frame at the end of what has none, ``PATIENCE`` at least; else 0.

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
        self.silence = 0.0

    def __enter__(self) -> 'VideoFrames':
        return self

    def __exit__(self, *error: object) -> None:
        self.capture.release()

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Place from 0, and pixels as uint8 RGB of shape (h, w, 3)."""
        place, unread = 0, []
        counts = Path(self.video.source.partition('?')[0]).suffix.lower() in COUNTED
        while True:
            is_read, frame = self.capture.read()
            if not is_read and self.video.has_no_end:
                is_read, frame = self._read_again()
                if not is_read:
                    return
            if is_read:
                self.broken += unread
                unread = []
                yield place, with_swapped_channels(frame)
            elif self.number is None or place >= self.number or len(unread) == MOST_BROKEN:
                if counts or len(unread) == MOST_BROKEN:
                    self.broken += unread
                return
            else:
                unread.append(place)
            place += 1

    def _read_again(self) -> tuple[bool, np.ndarray | None]:
        """A frame of a camera or stream after it gave none: senders start anew, networks come back."""
        start = time.monotonic()
        while time.monotonic() < start + PATIENCE:
            self.capture.open(self.source)
            is_read, frame = self.capture.read()
            if is_read:
                return True, frame
            time.sleep(0.5)
        self.silence = time.monotonic() - start
        return False, None


def opencv() -> ModuleType:
    """OpenCV, which nothing but videos needs; OSError with the cure where it is not installed."""
    try:
        return importlib.import_module('cv2')
    except ImportError as error:
        raise OSError('videos need OpenCV. Cure: pip install opencv-python-headless') from error


def with_swapped_channels(pixels: np.ndarray) -> np.ndarray:
    """RGB of BGR or the other way, uint8 (h, w, 3); NumPy is slow at copying them so."""
    cv2 = opencv()
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def find_sources(words: list[str]) -> Sources:
    """Pictures and videos by name, in folders (not in folders inside) and by globs (``**`` goes into folders).

    A number that is no file is a camera; what has ``://`` is the address of a stream.
    """
    items, failed = [], {}
    for word in words:
        path = Path(word)
        if '://' in word or (word.isdigit() and not os.path.exists(path)):
            items.append(Video(word, is_live=True))
            continue
        if os.path.isfile(path):  # False, too, where the name is too long
            found = [path]
        elif os.path.isdir(path):
            found = sorted(file for file in path.iterdir()
                           if file.is_file() and file.suffix.lower() in PICTURES | VIDEOS)
        else:
            found = sorted(file for file in map(Path, glob.glob(word, recursive=True)) if file.is_file())
        if not found:
            failed[word] = 'a folder without pictures or videos' if os.path.isdir(path) else 'not there'
        items += [Video(str(file), is_live=False) if file.suffix.lower() in VIDEOS else file for file in found]
    return Sources(list(dict.fromkeys(items)), failed)
