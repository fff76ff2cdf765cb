"""Make a small COCO-format detection set: drawn shapes of many sizes that hide each other on cluttered backdrops.

- Six classes. The longer side of the whole object goes from 8 px to 0.9 of the image's shorter side, its square
  root uniform. Objects are turned by up to 30 degrees.
- About 5 % of the images hold no object, the others ask for 1 to 12; an object that fits nowhere is left out.
- `bbox` is the visible extent, as in COCO, exact to 1/4 px; `area` is the visible area; `visibility` is the visible
  share of the whole object.
- An object is placed only where it, and each one that it hides in part, keeps at least half of its area in sight. So
  everything drawn is annotated and nothing annotated is hidden.
- Lines, scrawls and soft blobs are distractors: no objects, always beneath the objects.
- With `--large` the objects are 1 or 2, of 0.4 to 0.9 of the image's shorter side.

Each image draws from its own generator, made from (seed, split, index): a smaller set is the start of a larger one.
"""
import argparse
import hashlib
import io
import json
import re
import shutil
import signal
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from mmengine.utils import ProgressBar
from PIL import Image
from shapes_drawing import CLASSES, FEW_LARGE, MANY, camera, compose, visible_extent

NUM_TRAIN, NUM_TRAIN_LARGE = 3000, 800  # what the configs and docs have
VERSION = 1  # a change of any pixel or box is a new version
SPLITS = ('train', 'val')
OWN_FILES = re.compile(r'shapes\.json|annotations(/(train|val)\.json)?|(train|val)(/\d{6,}\.png)?')


class Refusal(Exception):
    """What the user should read, in one line."""


def make_image(seed, split, index, size, large=False):
    """Image `index` of a split.

    Returns:
        tuple: RGB picture (h, w, 3), uint8, longer side `size`; one dict of annotation per object.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    sides = [size, round(size * rng.uniform(0.6, 1))]
    sides = sides if rng.random() < 0.5 else sides[::-1]
    scene = compose(rng, *sides, FEW_LARGE if large else MANY)
    return camera(rng, scene.image), [annotate(scene, number) for number in range(1, len(scene.shapes) + 1)]


def annotate(scene, number):
    box, area, visibility = visible_extent(scene, number)
    category_id = scene.shapes[number - 1].category + 1
    return {'category_id': category_id, 'bbox': box, 'area': area, 'visibility': round(visibility, 3), 'iscrowd': 0}


def write_split(folder, split, num_images, size, seed, large, progress):
    images, annotations = [], []
    (folder / split).mkdir()
    for index in range(num_images):
        picture, objects = make_image(seed, split, index, size, large)
        file_name = f'{index + 1:06d}.png'
        Image.fromarray(picture).save(folder / split / file_name, compress_level=4)
        images.append({'id': index + 1, 'file_name': file_name, 'height': picture.shape[0], 'width': picture.shape[1]})
        annotations += [dict(id=len(annotations) + n, image_id=index + 1, **o) for n, o in enumerate(objects, start=1)]
        progress.update()
    categories = [{'id': n, 'name': name} for n, name in enumerate(CLASSES, start=1)]
    info = {'description': f'shapes, {split}'}
    content = {'info': info, 'images': images, 'annotations': annotations, 'categories': categories}
    (folder / 'annotations' / f'{split}.json').write_text(json.dumps(content))


def write_set(folder, num_train, num_val, size, seed, large):
    """Fill a new folder; shapes.json, which tells what made it and proves it complete, comes last."""
    (folder / 'annotations').mkdir(parents=True)
    # In a log file a bar that redraws itself is a page of noise.
    progress = ProgressBar(num_train + num_val, file=sys.stderr if sys.stderr.isatty() else io.StringIO())
    for split, num_images in zip(SPLITS, (num_train, num_val), strict=True):
        write_split(folder, split, num_images, size, seed, large, progress)
    print(file=sys.stderr if sys.stderr.isatty() else io.StringIO())
    record = recipe(num_train, num_val, size, seed, large) | {'classes': CLASSES, 'sha256': digest(folder)}
    (folder / 'shapes.json').write_text(json.dumps(record, indent=2) + '\n')


def recipe(num_train, num_val, size, seed, large):
    parameters = {'num_train': num_train, 'num_val': num_val, 'size': size, 'seed': seed}
    if large:  # sets of before there was this choice lack it
        parameters['large'] = True
    return {'generator': 'make_shapes', 'version': VERSION, 'parameters': parameters}


def digest(folder):
    """SHA-256 of the names and bytes of the set's files, shapes.json apart."""
    sha = hashlib.sha256()
    for path in sorted(folder.glob('*/*')):
        name = path.relative_to(folder).as_posix()
        if OWN_FILES.fullmatch(name):
            sha.update(name.encode() + b'\0' + path.read_bytes())
    return sha.hexdigest()


def read_record(out):
    """What shapes.json says of a set of ours, else None."""
    try:
        record = json.loads((out / 'shapes.json').read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get('generator') == 'make_shapes' else None


def is_there_already(out, wanted, overwrite):
    """Whether `out` holds this very set; a Refusal when it holds something that may not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    record = read_record(out)
    if record is None:
        raise Refusal(f'{out} is something else than a shapes set and stays as it is: choose another OUT')
    if wanted.items() <= record.items() and record.get('sha256') == digest(out):
        return True
    if not overwrite:
        state = 'a damaged copy of this set' if wanted.items() <= record.items() else (
            f'another shapes set (version {record.get("version")}, {record.get("parameters")})')
        raise Refusal(f'{out} holds {state}: choose another OUT, or replace it with --overwrite')
    foreign = [name for p in out.rglob('*') if not OWN_FILES.fullmatch(name := p.relative_to(out).as_posix())]
    if foreign:
        raise Refusal(f'{out} holds more than a shapes set, such as {min(foreign)}: move that or choose another OUT')
    return False


@contextmanager
def staging(out):
    """A temporary folder beside `out`, gone at the end whatever happens."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f'.{out.name}-', dir=out.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def swap_in(new, out, old):
    """Rename `new` to `out`; what was there goes to `old`, and back if that fails."""
    try:
        if out.exists():
            out.rename(old)
        new.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise


def make_set(out, num_train=None, num_val=200, size=128, seed=0, large=False, overwrite=False):
    """Make the set, all of it or nothing, unless it is there already."""
    out = Path(out).resolve()
    num_train = num_train or (NUM_TRAIN_LARGE if large else NUM_TRAIN)
    if is_there_already(out, recipe(num_train, num_val, size, seed, large), overwrite):
        print(f'{out} holds this set already, complete: nothing to do')
        return
    with staging(out) as folder:
        write_set(folder / 'new', num_train, num_val, size, seed, large)
        swap_in(folder / 'new', out, folder / 'old')
    print(f'{out}: {num_train} images to train on, {num_val} to validate')


def at_least(lowest):
    def number(text):
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f'{text} is below {lowest}')
        return int(text)
    return number


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', metavar='OUT', help='folder to make')
    parser.add_argument('--num-train', type=at_least(1),
                        help=f'images to train on (default {NUM_TRAIN}; {NUM_TRAIN_LARGE} with --large)')
    parser.add_argument('--num-val', type=at_least(1), default=200, help='images to validate (default 200)')
    parser.add_argument('--size', type=at_least(48), default=128,
                        help='longer side in pixels (default 128); the shorter one is 0.6 to 1 times that')
    parser.add_argument('--seed', type=at_least(0), default=0)
    parser.add_argument('--large', action='store_true', help='one or two large objects an image instead of up to 12')
    parser.add_argument('--overwrite', action='store_true', help='replace another shapes set, never anything else')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    try:
        make_set(**vars(args))
    except Refusal as refusal:
        sys.exit(f'make_shapes: {refusal}')
    except OSError as error:
        sys.exit(f'make_shapes: cannot write {args.out}: {error.strerror or error}')
    except KeyboardInterrupt:
        print('\nmake_shapes: interrupted, nothing was written', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave nothing behind then either
    main()
