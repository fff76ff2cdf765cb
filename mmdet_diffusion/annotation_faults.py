"""What is wrong in an annotation file of COCO's or LVIS's form, said with its place."""

from collections.abc import Iterator

LISTS = ('categories', 'images', 'annotations')
IDS = dict(images=('id', ), annotations=('id', 'image_id', 'category_id'), categories=('id', ))
NUMBERS = dict(images=('width', 'height'), annotations=('area', ), categories=())
TEXTS = dict(images=('file_name', 'coco_url'), annotations=(), categories=('name', ))
NEEDED = dict(images=('id', 'width', 'height'), annotations=('id', 'image_id', 'category_id', 'bbox', 'area'),
              categories=('id', 'name'))
LARGEST = 1e12  # of a number: an area, too


def first_fault(content: object) -> str | None:
    """The first value that would be misread or cannot be read; a list of images or annotations may be left out.

    Args:
        content (object): of the file, parsed.

    Returns:
        str | None: place, value and what is expected there; None where nothing is wrong.
    """
    return next(_faults(content), None)


def first_missing_key(content: dict) -> str | None:
    """The first entry that lacks what MMDetection reads of a detection data set, in a file without other faults."""
    if not content.get('images'):
        return 'it lists no images'
    for section in LISTS:
        for index, entry in enumerate(content.get(section, [])):
            lacking = [key for key in NEEDED[section] if key not in entry]
            if section == 'images' and not {'file_name', 'coco_url'} & entry.keys():
                lacking.append('file_name')
            if lacking:
                return f'{section}[{index}] has no {lacking[0]!r}'
    return None


def first_without_address(content: dict) -> str | None:
    """The first image without an address, by which MMDetection names the pictures of LVIS v1."""
    return next((f'images[{index}] has no coco_url, by which LVIS v1 names its pictures'
                 for index, image in enumerate(content['images']) if not isinstance(image.get('coco_url'), str)), None)


def _faults(content: object) -> Iterator[str]:
    for section in LISTS:
        entries = content.get(section, [] if section != 'categories' else None) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            yield f'it has no list of "{section}" as COCO and LVIS annotation files have'
            return
        seen = {}
        for index, entry in enumerate(entries):
            place = f'{section}[{index}]'
            yield from _entry_faults(entry, section, place)
            if 'id' in entry and seen.setdefault(entry['id'], place) != place:
                yield f'{place} has the id {_shown(entry["id"])} of {seen[entry["id"]]}'


def _entry_faults(entry: dict, section: str, place: str) -> Iterator[str]:
    for key in IDS[section]:
        if key in entry and not _is_id(entry[key]):
            yield f'{place} has the {key} {_shown(entry[key])}; expected a whole number'
            return
    for key in NUMBERS[section]:
        if key in entry and (not _is_number(entry[key]) or section == 'images' and entry[key] <= 0):
            yield f'{place} has the {key} {_shown(entry[key])}; expected a number' + ' above 0' * (section == 'images')
    for key in TEXTS[section]:
        # Many exporters write null for an address that nobody needs.
        is_left_out = key == 'coco_url' and entry.get(key) is None and 'file_name' in entry
        if key in entry and not isinstance(entry[key], str) and not is_left_out:
            yield f'{place} has the {key} {_shown(entry[key])}; expected text'
    bbox = entry.get('bbox', [0, 0, 0, 0]) if section == 'annotations' else [0, 0, 0, 0]
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        yield f'{place} has the bbox {_shown(bbox)}; expected four numbers: x, y, width, height'


def _is_id(value: object) -> bool:
    if isinstance(value, float):
        return value.is_integer()  # as spreadsheets write them
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST  # NaN is not


def _shown(value: object) -> str:
    shown = ascii(value)  # in one line
    return shown if len(shown) < 60 else shown[:57] + '...'
