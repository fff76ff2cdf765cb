"""What predictions are written to: JSON, JSON lines, COCO's JSON, drawn pictures and videos; none grows in memory."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from .sources import opencv, with_swapped_channels
from .whole_file import unfinished_name, whole_file

WIDEST_RATE = 65535  # what MPEG-4 counts a second in
DRAWN = {'.jpg', '.jpeg', '.png'}  # formats that drawn pictures keep; others become PNG


class JsonFile:
    """One object: what was run, and under ``images`` a record of each picture or frame.

    Args:
        folder (Path): for ``predictions.json``, which is there when all is done, whatever ended the run.
        content (dict): of the run; its values are written when it ends.
    """

    NAME = 'predictions.json'

    def __init__(self, folder: Path, content: dict) -> None:
        self.path, self.content = folder / self.NAME, content
        self.unfinished = unfinished_name(self.path)
        self.file = self.unfinished.open('w')
        self.file.write('{"images": [')
        self.is_first = True

    def add(self, record: dict) -> None:
        """A picture or frame more."""
        self.file.write(('' if self.is_first else ',\n') + json.dumps(record))
        self.is_first = False

    def close(self) -> None:
        """End the file and give it its name."""
        try:
            self.file.write('], ' + json.dumps(self.content)[1:] + '\n')
            self.file.close()
            self.unfinished.replace(self.path)
        finally:
            self.unfinished.unlink(missing_ok=True)


class JsonLines:
    """A line for each picture or frame, as it comes, in ``predictions.jsonl``."""

    NAME = 'predictions.jsonl'

    def __init__(self, folder: Path, content: dict) -> None:
        self.path = folder / self.NAME
        self.file = self.path.open('w')

    def add(self, record: dict) -> None:
        """A picture or frame more."""
        self.file.write(json.dumps(record) + '\n')
        self.file.flush()

    def close(self) -> None:
        """End the file."""
        self.file.close()


class CocoFile:
    """A data set in COCO's form, ``predictions.coco.json``: annotations with scores, category ids from 1."""

    NAME = 'predictions.coco.json'

    def __init__(self, folder: Path, content: dict) -> None:
        self.path, self.classes = folder / self.NAME, content['classes']
        self.parts = {name: unfinished_name(folder / f'{name}.part') for name in ('images', 'annotations')}
        self.files = {name: path.open('w') for name, path in self.parts.items()}
        self.numbers = dict.fromkeys(self.parts, 0)

    def _write(self, part: str, entry: dict) -> None:
        self.files[part].write(('' if self.numbers[part] == 0 else ',\n') + json.dumps(entry))
        self.numbers[part] += 1

    def add(self, record: dict) -> None:
        """A picture or frame more."""
        place = dict(file_name=record['image']) if 'image' in record else dict(
            file_name=record['video'], frame=record['frame'])
        self._write('images', dict(place, id=self.numbers['images'] + 1, width=record['width'],
                                   height=record['height']))
        for box, score, label in zip(record['bboxes'], record['scores'], record['labels'], strict=True):
            left, top, right, bottom = box
            width, height = round(right - left, 2), round(bottom - top, 2)
            self._write('annotations', dict(
                id=self.numbers['annotations'] + 1, image_id=self.numbers['images'], category_id=label + 1, iscrowd=0,
                bbox=[left, top, width, height], area=round(width * height, 2), score=score))

    def close(self) -> None:
        """Join the parts and give the file its name."""
        try:
            for file in self.files.values():
                file.close()
            with whole_file(self.path) as unfinished, unfinished.open('w') as joined:
                categories = [dict(id=label + 1, name=name) for label, name in enumerate(self.classes)]
                joined.write('{"categories": ' + json.dumps(categories))
                for name, path in self.parts.items():
                    joined.write(f', "{name}": [')
                    with path.open() as part:
                        joined.writelines(part)
                    joined.write(']')
                joined.write('}\n')
        finally:
            for path in self.parts.values():
                path.unlink(missing_ok=True)


FORMATS = dict(json=JsonFile, jsonl=JsonLines, coco=CocoFile)


class DrawnFiles:
    """Drawn pictures and videos; equal names, of several folders, get a number.

    Args:
        folder (Path): there already.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.taken = folder, set()
        self.video = None  # that is being written: source, writer, path, width and height

    def _name(self, stem: str, suffix: str) -> Path:
        name, number = stem + suffix, 2
        while name.lower() in self.taken:
            name, number = f'{stem}_{number}{suffix}', number + 1
        self.taken.add(name.lower())
        return self.folder / name

    def add_picture(self, source: str, pixels: np.ndarray) -> Path:
        """Write a drawn picture, uint8 RGB (h, w, 3), all of it or nothing; gives its path."""
        suffix = Path(source).suffix
        path = self._name(Path(source).stem, suffix if suffix.lower() in DRAWN else '.png')
        settings = {} if path.suffix.lower() == '.png' else dict(quality=95)
        with whole_file(path) as unfinished:
            Image.fromarray(pixels).save(unfinished, **settings)
        return path

    def add_frame(self, source: str, name: str, rate: float, pixels: np.ndarray) -> Path:
        """Write a frame of a video, which gets its name when the next video or :meth:`close` comes; gives that path.

        Raises:
            OSError: if OpenCV cannot write videos here.
        """
        if self.video is None or self.video[0] != source:
            self.close()
            cv2, path = opencv(), self._name(Path(name).stem, '.mp4')
            writer = cv2.VideoWriter(str(unfinished_name(path)), cv2.VideoWriter_fourcc(*'mp4v'), _writable(rate),
                                     pixels.shape[1::-1])
            if not writer.isOpened():
                raise OSError(f'{path} cannot be written as a video; leave drawing out by --no-draw')
            self.video = source, writer, path, pixels.shape[1::-1]
        _, writer, path, size = self.video
        if pixels.shape[1::-1] != size:  # of a stream it may change; OpenCV leaves such frames out without a word
            pixels = np.asarray(Image.fromarray(pixels).resize(size))
        writer.write(with_swapped_channels(pixels))
        return path

    def close(self) -> None:
        """End the video that is being written, and give it its name."""
        if self.video is not None:
            _, writer, path, _ = self.video
            self.video = None
            writer.release()
            unfinished_name(path).replace(path)


def _writable(rate: float) -> float:
    """A rate of frames with as many digits as MPEG-4 can hold."""
    rate = min(rate, WIDEST_RATE)
    return round(rate, next(digits for digits in (3, 2, 1, 0) if rate * 10**digits <= WIDEST_RATE))
