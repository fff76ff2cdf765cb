"""Convert CrowdHuman's annotations (.odgt) to one COCO JSON, to test models that were trained on COCO.

Boxes are the visible ones (`vbox`), as they are annotated: what COCO calls a person's box is what one sees of them. The
categories are COCO's 80, so that an 80-class model and its labels need no change; only `person` has objects, and COCO's
evaluation leaves classes without objects out of its means. What CrowdHuman ignores (tag `mask`, or `extra.ignore`)
becomes `"iscrowd": 1`: not counted, and detections inside are forgiven.

CrowdHuman gives no image sizes, so they are read from the images, `<ID>.jpg` in --image-dir. Images without people are
kept.
"""
import mmdet_diffusion  # noqa: F401  isort: skip  first: it makes the operators of mmcv available
import argparse
import json
import math
import sys
from pathlib import Path

from mmdet.datasets import CocoDataset
from voc_to_coco import Refusal, Skip, real_size, write_json

SHOWN_EXAMPLES = 5
PERSON = 1


def read_odgt(path):
    """Image ID -> its people and how many have no visible area, of an .odgt file: one JSON object a line."""
    records = {}
    try:
        text = path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise Refusal(f'{path} is no text in UTF-8: {error}') from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            image_id, boxes = str(record['ID']), record['gtboxes']
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(f'line {number} of {path} is no CrowdHuman record: {error!r}') from error
        where = f'line {number} of {path}, image {image_id}'
        if image_id in records:
            raise Refusal(f'{where}: an earlier line has this ID too')
        if not isinstance(boxes, list):
            raise Refusal(f'{where}: "gtboxes" is no list but {boxes!r}')
        records[image_id] = visible_people(where, boxes)
    return records


def visible_people(where, boxes):
    """One image's people as COCO annotations that still lack their ids, and how many have no visible area."""
    people, no_area = [], 0
    for box in boxes:
        try:
            x, y, width, height = map(float, box['vbox'])
            ignored = box['tag'] != 'person' or bool(box.get('extra', {}).get('ignore', 0))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise Refusal(f'{where}: a box without a proper "tag", "vbox" or "extra": {error!r}') from error
        if not all(map(math.isfinite, (x, y, width, height))):
            raise Refusal(f'{where}: a box with numbers that are not finite: {box["vbox"]!r}')
        if width > 0 and height > 0:
            people.append({'category_id': PERSON, 'bbox': [x, y, width, height], 'area': width * height,
                           'iscrowd': int(ignored)})
        else:
            no_area += 1
    return people, no_area


def sizes_of(image_ids, image_dir):
    """(width, height) of each image."""
    sizes, unread = {}, []
    for image_id in image_ids:
        try:
            sizes[image_id] = real_size(image_dir / f'{image_id}.jpg')
        except Skip:
            unread.append(f'{image_id}.jpg')
    if unread:
        shown = ', '.join(unread[:SHOWN_EXAMPLES]) + (', ...' if len(unread) > SHOWN_EXAMPLES else '')
        raise Refusal(f'{len(unread)} of {len(image_ids)} images are not in {image_dir} or not readable: {shown}')
    return sizes


def convert(records, image_dir):
    """COCO content (dict) of the records, and how many boxes without visible area were left out."""
    sizes = sizes_of(records, image_dir)
    images, annotations, left_out = [], [], 0
    for number, (image_id, (people, no_area)) in enumerate(records.items(), start=1):
        width, height = sizes[image_id]
        images.append({'id': number, 'file_name': f'{image_id}.jpg', 'width': width, 'height': height})
        left_out += no_area
        annotations += [dict(person, id=len(annotations) + index, image_id=number)
                        for index, person in enumerate(people, start=1)]
    categories = [{'id': number, 'name': name} for number, name in enumerate(CocoDataset.METAINFO['classes'], PERSON)]
    info = {'description': 'visible boxes of CrowdHuman with the categories of COCO'}
    return {'info': info, 'images': images, 'annotations': annotations, 'categories': categories}, left_out


def run(args):
    if not args.odgt.is_file():
        raise Refusal(f'{args.odgt} is no file')
    if not args.image_dir.is_dir():
        raise Refusal(f'{args.image_dir} is no folder')
    if args.out.exists():
        raise Refusal(f'{args.out} exists: choose another OUT')
    content, left_out = convert(read_odgt(args.odgt), args.image_dir)
    if not content['images']:
        raise Refusal(f'{args.odgt} holds no image, nothing was written')
    ignored = sum(annotation['iscrowd'] for annotation in content['annotations'])
    print(f'{len(content["images"])} images, {len(content["annotations"]) - ignored} people, {ignored} ignored boxes, '
          f'{left_out} without visible area left out')
    write_json(content, args.out)
    print(f'written to {args.out}')


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('odgt', metavar='ANNOTATIONS.odgt', type=Path)
    parser.add_argument('out', metavar='OUT.json', type=Path)
    parser.add_argument('--image-dir', metavar='DIR', type=Path, required=True, help='folder of the images')
    args = parser.parse_args(argv)
    try:
        run(args)
    except Refusal as refusal:
        sys.exit(f'crowdhuman_to_coco: {refusal}')
    except OSError as error:
        sys.exit(f'crowdhuman_to_coco: {error}')


if __name__ == '__main__':
    main()
