"""Categories of annotation files in COCO's or LVIS's form, parsed by one process for all."""

import json
import os

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import get_text

from .annotation_faults import first_fault

KEYS = ('id', 'name', 'image_count')

_read: dict[tuple, list[dict]] = {}  # of the first process


def read_categories(ann_file: str, backend_args: dict | None = None) -> list[dict]:
    """Categories of an annotation file, in its order.

    A file of LVIS has a gigabyte, and takes several to parse, so the first process parses it, once unless it changes,
    and tells the others: all processes have to call this together.

    Args:
        ann_file (str): JSON file.
        backend_args (dict, optional): of mmengine's file back end.

    Returns:
        list[dict]: ``id``, ``name`` and ``image_count``, where the file has them.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is no JSON, or something in it is wrong (see :func:`first_fault`).
        RuntimeError: if anything else goes wrong.
    """
    answer = [None]
    if is_main_process():
        try:
            answer = [_parsed_once(ann_file, backend_args)]
        except (OSError, ValueError) as error:  # raised in every process, or the others would wait for ever
            answer = [error]
        except Exception as error:  # of any library, so it may not travel; too little memory, too
            answer = [RuntimeError(f'{ann_file} cannot be read ({type(error).__name__}: {error})')]
    broadcast_object_list(answer)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def parse_annotations(ann_file: str, backend_args: dict | None) -> object:
    """Content of an annotation file; no other format than JSON, some of which run code.

    Args:
        ann_file (str): path or address.
        backend_args (dict | None): of mmengine's file back end.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is no JSON.
    """
    try:
        return json.loads(get_text(ann_file, backend_args=backend_args))
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{ann_file} is not there') from error
    except (ValueError, RecursionError) as error:  # broken JSON; no text; brackets within brackets without end
        raise ValueError(f'{ann_file} is no JSON: {error}') from error


def _parsed_once(ann_file: str, backend_args: dict | None) -> list[dict]:
    try:
        status = os.stat(ann_file)
        state = status.st_size, status.st_mtime_ns
    except (OSError, ValueError):  # an address
        state = None
    key = ann_file, state, json.dumps(backend_args, default=str)
    if key not in _read:
        _read[key] = _parse(ann_file, backend_args)
    return _read[key]


def _parse(ann_file: str, backend_args: dict | None) -> list[dict]:
    content = parse_annotations(ann_file, backend_args)
    fault = first_fault(content)
    if fault is not None:
        raise ValueError(f'{ann_file}: {fault}')
    return [{key: category[key] for key in KEYS if key in category} for category in content['categories']]
