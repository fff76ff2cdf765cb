"""Convert Pascal VOC annotations (one XML per image) to one COCO JSON, and say what could not be converted.

Boxes. VOC counts pixels from 1 and includes both ends: xmin = xmax = 1 is the first column, one pixel wide. So
x = xmin - 1 and w = xmax - xmin + 1. Many sets in this format (much of what labelImg made) hold corners measured from 0
instead; for those say --zero-based: x = xmin, w = xmax - xmin. The files do not tell which; a corner at 0 is a hint.

Difficult objects become `"iscrowd": 1, "difficult": 1`: neither trained on nor counted, as VOC and MMDetection's VOC
data set have it. pycocotools then forgives every detection inside such a box. (`"ignore": 1` would not do: MMDetection
drops such objects, so they would be trained on as background and their detections counted as false.)

Images. The file name is the last part of <filename>, else the XML's own name. With --image-dir it must exist there
(else an image named like the XML is taken, else the image is left out), and the size is that of the file after its EXIF
rotation; without, the size is what the XML says. Images without objects are kept.

Classes are numbered from 1 in the order of --classes, else of all names in ANNOTATIONS_DIR sorted, whatever --image-set
says. Give --classes when train and val lie in different folders.
"""
import argparse
import json
import math
import os
import sys
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

from diffusiondet_runtime.pictures import picture_size

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
SHOWN_EXAMPLES = 5
CORNER_AT_0 = 'corner at 0 where VOC counts from 1, clipped; is this set one for --zero-based?'


class Refusal(Exception):
    """What the user should read, in one line."""


class Skip(Exception):
    """An image or object cannot be converted: args are the problem and, optionally, the particulars."""


def voc_to_xyxy(corners, zero_based=False):
    """Corners as in the XML to xyxy in pixels from 0, the far ones exclusive."""
    xmin, ymin, xmax, ymax = corners
    return (xmin, ymin, xmax, ymax) if zero_based else (xmin - 1, ymin - 1, xmax, ymax)


def clip_xyxy(box, width, height):
    x1, y1, x2, y2 = box
    return max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)


def has_area(box):
    x1, y1, x2, y2 = box
    return x2 > x1 and y2 > y1


def text_of(element, path):
    return (element.findtext(path) or '').strip()


def number_of(element, path):
    value = float(text_of(element, path))
    if not math.isfinite(value):
        raise ValueError(path)
    return int(value) if value.is_integer() else value


def read_xml(path):
    try:
        root = ET.parse(path).getroot()
    except (ET.ParseError, OSError, ValueError, LookupError) as error:
        raise Skip('XML not readable, left out', error) from error
    if root.tag != 'annotation':
        raise Skip('XML not readable, left out', f'its root is <{root.tag}>, not <annotation>')
    return root


def written_size(root):
    """(width, height) as in the XML, or None."""
    try:
        size = number_of(root, 'size/width'), number_of(root, 'size/height')
    except ValueError:
        return None
    return size if min(size) >= 1 and all(isinstance(side, int) for side in size) else None


def real_size(path):
    """(width, height) of an image file as it is shown, that is after its EXIF rotation."""
    try:
        return picture_size(path)
    except (OSError, ValueError) as error:
        raise Skip('image not readable, left out', path.name) from error


def read_object(element, size, category_ids, zero_based, report):
    """One <object> as a COCO annotation that still lacks its ids.

    Args:
        report (callable): Called with (problem, particulars) for what is mended rather than left out.
    """
    name = text_of(element, 'name')
    try:
        corners = [number_of(element, f'bndbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax')]
    except ValueError as error:
        raise Skip('object without a proper <bndbox>, left out', name) from error
    if name not in category_ids:
        raise Skip('object of unknown class, left out', name or 'no name')
    box = voc_to_xyxy(corners, zero_based)
    if not has_area(box):
        raise Skip('box without area, left out', f'{name} {corners}')
    clipped = x1, y1, x2, y2 = clip_xyxy(box, *size)
    where = f'{name} {corners} in {size[0]} x {size[1]}'
    if not has_area(clipped):
        raise Skip('box outside the image, left out', where)
    if clipped != box:
        at_0 = not zero_based and min(corners[:2]) == 0
        report(CORNER_AT_0 if at_0 else 'box partly outside the image, clipped', where)
    flag = int(text_of(element, 'difficult') in ('1', 'true', 'True'))
    return {'category_id': category_ids[name], 'bbox': [x1, y1, x2 - x1, y2 - y1], 'area': (x2 - x1) * (y2 - y1),
            'iscrowd': flag, 'difficult': flag}


def find_image(folder, file_name, stem):
    """The file called `file_name`, with or without its suffix, else one named like the XML."""
    for name in (file_name, stem):
        for suffix in ('', *SUFFIXES, *map(str.upper, SUFFIXES)):
            if name and os.path.isfile(folder / (name + suffix)):  # False, too, where the name is too long
                return folder / (name + suffix)
    raise Skip('image missing, left out', file_name or stem)


def locate(root, stem, image_dir, report):
    """File name and (width, height) of the image of an XML."""
    file_name = text_of(root, 'filename').replace('\\', '/').rpartition('/')[2]
    size = written_size(root)
    if image_dir is not None:
        path = find_image(image_dir, file_name, stem)
        found = real_size(path)
        if path.name != file_name:
            report('<filename> is no image in --image-dir, one with a like name was taken', path.name)
        if size not in (None, found):
            report('size in the XML is not that of the image, which was taken', f'{size}, {found}')
        return path.name, found
    if not file_name.lower().endswith(SUFFIXES):
        file_name = (file_name or stem) + '.jpg'
        report('<filename> without a suffix, taken for .jpg', file_name)
    if size is None:
        raise Skip('no image size in the XML (--image-dir reads it from the image), left out')
    return file_name, size


def select_xmls(folder, image_set, report):
    """The XMLs of a folder, or of the ids that a file lists one a line."""
    if image_set is None:
        return sorted(folder.glob('*.xml'))
    try:
        listed = [line.strip() for line in image_set.read_text(encoding='utf-8').splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f'cannot read the image set {image_set}: {error}') from error
    xmls = []
    for name, times in Counter(listed).items():
        if times > 1:
            report(name, 'id listed more than once, taken once')
        if (folder / f'{name}.xml').is_file():
            xmls.append(folder / f'{name}.xml')
        else:
            report(name, 'id without an XML, left out')
    return xmls


def class_names(folder):
    """All names of objects in the readable XMLs of a folder, sorted."""
    names = set()
    for path in folder.glob('*.xml'):
        try:
            names.update(text_of(element, 'name') for element in read_xml(path).findall('object'))
        except Skip:
            continue
    return sorted(names - {''})


def convert(xmls, classes, image_dir=None, zero_based=False, report=print):
    """COCO content (dict) of the XMLs that can be converted.

    Args:
        report (callable): Called with (XML's name, problem, particulars) for everything left out or mended.
    """
    category_ids = {name: number for number, name in enumerate(classes, start=1)}
    images, annotations, taken = [], [], {}
    for path in xmls:
        report_here = partial(report, path.name)
        try:
            root = read_xml(path)
            file_name, size = locate(root, path.stem, image_dir, report_here)
            if file_name in taken:
                raise Skip('image annotated by an earlier XML, left out', f'{file_name}, see {taken[file_name]}')
        except Skip as skip:
            report_here(*skip.args)
            continue
        taken[file_name] = path.name
        images.append({'id': len(images) + 1, 'file_name': file_name, 'width': size[0], 'height': size[1]})
        for found in read_objects(root, size, category_ids, zero_based, report_here):
            annotations.append(dict(id=len(annotations) + 1, image_id=len(images), **found))
    categories = [{'id': number, 'name': name} for name, number in category_ids.items()]
    info = {'description': 'converted from Pascal VOC XML'}
    return {'info': info, 'images': images, 'annotations': annotations, 'categories': categories}


def read_objects(root, size, category_ids, zero_based, report):
    for element in root.findall('object'):
        try:
            yield read_object(element, size, category_ids, zero_based, report)
        except Skip as skip:
            report(*skip.args)


def summarise(content, problems):
    """What came of it, one line each, as text."""
    annotations = content['annotations']
    empty = len(content['images']) - len({a['image_id'] for a in annotations})
    yield (f'{len(content["images"])} images ({empty} without objects), {len(annotations)} boxes '
           f'({sum(a["difficult"] for a in annotations)} difficult)')
    yield f'classes={tuple(category["name"] for category in content["categories"])}'
    for problem, examples in sorted(problems.items()):
        shown = '; '.join(examples[:SHOWN_EXAMPLES]) + ('; ...' if len(examples) > SHOWN_EXAMPLES else '')
        yield f'{len(examples)} x {problem}: {shown}'


def write_json(content, out):
    """All of the file or nothing."""
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f'.{out.name}.{os.getpid()}.tmp')
    try:
        unfinished.write_text(json.dumps(content), encoding='utf-8')
        os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)


def run(args):
    for folder in filter(None, (args.annotations_dir, args.image_dir)):
        if not folder.is_dir():
            raise Refusal(f'{folder} is no folder')
    if args.out.is_dir() or (args.out.exists() and not args.overwrite):
        raise Refusal(f'{args.out} exists: choose another OUT' + ('' if args.out.is_dir() else ' or add --overwrite'))
    problems = defaultdict(list)

    def report(name, problem, particulars=''):
        problems[problem].append(f'{name} ({particulars})' if particulars else name)

    xmls = select_xmls(args.annotations_dir, args.image_set, report)
    classes = args.classes or class_names(args.annotations_dir)
    content = convert(xmls, classes, args.image_dir, args.zero_based, report)
    print(*summarise(content, problems), sep='\n')
    if not content['images']:
        raise Refusal(f'nothing in {args.annotations_dir} could be converted, nothing was written')
    if args.strict and problems:
        raise Refusal(f'{sum(map(len, problems.values()))} problems and --strict: nothing was written')
    write_json(content, args.out)
    print(f'written to {args.out}')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('annotations_dir', metavar='ANNOTATIONS_DIR', type=Path, help='folder of the XMLs')
    parser.add_argument('out', metavar='OUT.json', type=Path)
    parser.add_argument('--image-set', metavar='FILE', type=Path, help='take these only: one image id a line')
    parser.add_argument('--image-dir', metavar='DIR', type=Path, help='where the images are, to check names and sizes')
    parser.add_argument('--classes', metavar='NAME', nargs='+', help='the classes, in the order of their ids')
    parser.add_argument('--zero-based', action='store_true', help='corners measured from 0, not pixels counted from 1')
    parser.add_argument('--strict', action='store_true', help='write nothing if there is any problem')
    parser.add_argument('--overwrite', action='store_true', help='replace OUT.json')
    args = parser.parse_args(argv)
    if args.classes and len(set(args.classes)) < len(args.classes):
        parser.error('--classes names a class twice')
    return args


def main(argv=None):
    args = parse_args(argv)
    try:
        run(args)
    except Refusal as refusal:
        sys.exit(f'voc_to_coco: {refusal}')
    except OSError as error:
        sys.exit(f'voc_to_coco: cannot write {args.out}: {error.strerror or error}')


if __name__ == '__main__':
    main()
