"""What a user names and is not there, said in one line before anything is built."""

import os
import pickle
import traceback
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from torch import nn

from diffusiondet_runtime.errors import first_line

from .annotation_categories import parse_annotations
from .annotation_faults import first_fault, first_missing_key, first_without_address
from .half_precision import half_dtype, half_precision
from .hooks.checkpoint_report_hook import differences

PICKLE = b'\x80'  # first byte


def refuse_missing_checkpoint(checkpoint: str | None, origin: str = '') -> None:
    """Stop where a checkpoint is no file, or not as torch wrote it; None and an address of the web pass.

    Args:
        checkpoint (str | None): path.
        origin (str): the setting that names it, if it is no argument of its own.

    Raises:
        SystemExit: names the path.
    """
    if checkpoint is None or '://' in checkpoint:
        return
    named = f'{checkpoint} ({origin})' if origin else checkpoint
    if not os.path.isfile(checkpoint):
        raise SystemExit(f'there is no checkpoint {named}')
    with open(checkpoint, 'rb') as file:
        is_pickle = file.read(1) == PICKLE  # as torch wrote them before 1.6
    if is_pickle:
        return
    if not zipfile.is_zipfile(checkpoint):
        raise SystemExit(f'{named} is no checkpoint, or only the first part of one')
    try:
        with zipfile.ZipFile(checkpoint) as records:
            changed = records.testzip()  # torch reads changed numbers without a word
    except Exception as error:  # whatever the module stumbles over
        raise SystemExit(f'{named} is a damaged checkpoint ({type(error).__name__}: {error})') from error
    if changed is not None:
        raise SystemExit(f'{named} is a damaged checkpoint: its part {changed} is not as it was written')


def refuse_missing_last_checkpoint(work_dir: Path) -> None:
    """Stop where the checkpoint that ``--resume`` would take is not there or not whole; a folder without one passes.

    Args:
        work_dir (Path): of the training; its ``last_checkpoint`` holds the path.

    Raises:
        SystemExit: names the path, and the checkpoints that are there.
    """
    note = work_dir / 'last_checkpoint'
    if not note.is_file():
        return
    try:
        last = note.read_text().strip()
        if os.path.isdir(last):  # of a training in shards
            return
        refuse_missing_checkpoint(last, f'which {note} names')
    except (SystemExit, UnicodeDecodeError) as error:
        others = ', '.join(sorted(map(str, work_dir.glob('*.pth')))) or 'none'
        raise SystemExit(f'{error}; checkpoints in {work_dir}: {others}. Give a whole one as --resume CHECKPOINT, or '
                         f'remove {note} to train from the start') from error


def refuse_missing_data(config: Config, parts: Sequence[str]) -> None:
    """Stop where a folder or annotation file of data loaders or evaluators is not there.

    What lies elsewhere than in the file system, by ``backend_args`` or a ``://`` in its name, is not looked for.

    Args:
        config (Config): with the options of the command line.
        parts (Sequence[str]): such as ``test_dataloader`` and ``test_evaluator``; those that the config lacks are
            passed over.

    Raises:
        SystemExit: names the first path that is missing and the key that leads to it.
    """
    for part in parts:
        value = config.get(part)
        if part.endswith('_dataloader') and value is not None:
            wanted = (path for dataset, key in datasets(value.dataset, f'{part}.dataset')
                      for path in dataset_paths(dataset, key))
        else:
            wanted = evaluator_paths(value, part)
        for kind, path, key in wanted:
            exists = os.path.isfile if kind == 'annotation file' else os.path.isdir
            if '://' not in path and not exists(path):
                raise SystemExit(f'there is no {kind} {path} ({key} of the config); give yours by --cfg-options '
                                 f'{key}=PATH')


def datasets(dataset: ConfigDict, key: str) -> Iterator[tuple[ConfigDict, str]]:
    """Data sets inside wrappers such as ClassBalancedDataset and ConcatDataset, each with its key."""
    if isinstance(dataset.get('dataset'), dict):
        yield from datasets(dataset.dataset, f'{key}.dataset')
    elif isinstance(dataset.get('datasets'), Sequence):
        for index, inner in enumerate(dataset.datasets):
            yield from datasets(inner, f'{key}.datasets.{index}')
    else:
        yield dataset, key


def dataset_paths(dataset: ConfigDict, key: str) -> Iterator[tuple[str, str, str]]:
    """Kind, path and key of what a data set reads, joined as mmengine joins them."""
    if dataset.get('backend_args') is not None:
        return
    root = dataset.get('data_root') or ''
    named = [dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()]
    if root and not all(path and (os.path.isabs(path) or '://' in path) for path in named):  # else it is not used
        yield 'data folder', root, f'{key}.data_root'
    if dataset.get('ann_file'):
        yield 'annotation file', os.path.join(root, dataset.ann_file), f'{key}.ann_file'
    prefix = dataset.get('data_prefix') or {}
    for name in ('img', 'img_path'):
        if prefix.get(name):
            yield 'folder of images', os.path.join(root, prefix[name]), f'{key}.data_prefix.{name}'


def evaluator_paths(evaluator: ConfigDict | list[ConfigDict] | None, key: str) -> Iterator[tuple[str, str, str]]:
    """Kind, path and key of the annotation files of one evaluator or a list of them."""
    several = evaluator if isinstance(evaluator, list) else [evaluator]
    for index, metric in enumerate(several):
        if metric and metric.get('ann_file') and metric.get('backend_args') is None:
            place = f'{key}.{index}' if isinstance(evaluator, list) else key
            yield 'annotation file', metric.ann_file, f'{place}.ann_file'


def refuse_missing_model(config: Config) -> None:
    """Stop where a config says nothing of a model, such as one of the parts that others inherit from.

    Raises:
        SystemExit: names the file.
    """
    if 'model' not in config:
        raise SystemExit(f'{config.filename} is no config of a detector: it has no model')


def refuse_half_precision(config: Config, device: str, *, training: bool = False) -> None:
    """Stop where a config asks for a type that the device does not compute in.

    Raises:
        SystemExit: names the setting, what is missing and what to set instead.
    """
    wanted = {'model.test_dtype': config.model.get('test_dtype')}
    wrapper = config.get('optim_wrapper') or {}
    if training and wrapper.get('type') == 'AutocastOptimWrapper':
        wanted['optim_wrapper.dtype'] = wrapper.get('dtype', 'bfloat16')
    for key, name in wanted.items():
        if name is not None:
            try:
                half_precision(torch.device(device), half_dtype(name, key), key)
            except (ValueError, RuntimeError) as error:
                raise SystemExit(str(error)) from error


def refuse_missing_device(device: str) -> None:
    """Stop where torch cannot put a tensor on a device.

    Raises:
        SystemExit: names the device and what torch says of it.
    """
    try:
        torch.zeros(1, device=device)
    except Exception as error:  # each backend raises what it likes
        reason = str(error).strip().splitlines()[0]
        raise SystemExit(f'there is no device {device} here: {reason}. --device cpu is always there') from error


def refuse_foreign_checkpoint(model: nn.Module, checkpoint: dict, path: str | Path) -> None:
    """Stop where a checkpoint is not of this model: mmengine would go on with random weights.

    Args:
        model (nn.Module): built.
        checkpoint (dict): a state dict, or a dict with one under ``state_dict``.
        path (str | Path): of the checkpoint.

    Raises:
        SystemExit: says how many tensors are missing or have another shape, and names one.
    """
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    given = {name.removeprefix('module.'): getattr(value, 'shape', None)
             for name, value in checkpoint.get('state_dict', checkpoint).items()}
    reshaped, _, missing = differences(given, wanted).values()
    for finding, names in (('it lacks {} tensors', missing), ('{} tensors have another shape', reshaped)):
        if names:
            raise SystemExit(f'{path} is not of this config: {finding.format(len(names))}, such as {min(names)}')


def refuse_unreadable_checkpoint(error: Exception, checkpoint: str) -> None:
    """Say in one line that a checkpoint cannot be loaded or resumed from.

    Args:
        error (Exception): what ended the program. Passed over unless mmengine was loading or resuming.
        checkpoint (str): its name.

    Raises:
        SystemExit: names it and the reason.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or not any(
            frame.name == 'load_or_resume' for frame in frames):
        return
    if isinstance(error, pickle.UnpicklingError):  # torch's own words recommend to run whatever code is in the file
        reason = 'is no checkpoint, or asks for more than tensors and is not trusted'
    else:
        kind = '' if type(error) is ValueError else f'{type(error).__name__}: '
        reason = f'cannot be read: {kind}{first_line(error)}'
    raise SystemExit(f'{checkpoint} {reason}') from error


def refuse_faulty_annotations(error: Exception, config: Config, parts: Sequence[str]) -> None:
    """Say in one line what is wrong with an annotation file that a data set could not be built from.

    Args:
        error (Exception): what ended the program. Passed over unless data sets or pycocotools raised it.
        config (Config): with the options of the command line.
        parts (Sequence[str]): such as ``train_dataloader``.

    Raises:
        SystemExit: names the file, the place in it and the value.
    """
    places = [frame.filename.replace('\\', '/') for frame in traceback.extract_tb(error.__traceback__)]
    if not any('/datasets/' in place or '/pycocotools/' in place or '/lvis/' in place for place in places):
        return
    loaders = (config.get(part) for part in parts if part.endswith('_dataloader'))
    wanted = [paths for loader in loaders if loader for paths in datasets(loader.dataset, '')]
    for dataset, _ in wanted:
        for kind, path, _ in dataset_paths(dataset, ''):
            if kind != 'annotation file' or '://' in path or not path.endswith('.json'):
                continue
            fault = annotation_file_fault(path, by_address=str(dataset.type).endswith('LVISV1Dataset'))
            if fault is not None:
                raise SystemExit(fault) from error


def annotation_file_fault(path: str, *, by_address: bool = False) -> str | None:
    """What is wrong with an annotation file of COCO's or LVIS's form, after its name; None where nothing is.

    Args:
        path (str): of the file.
        by_address (bool): its pictures are found by their ``coco_url``, as those of LVIS v1.
    """
    try:
        content = parse_annotations(path, None)
    except (ValueError, OSError) as error:
        return str(error)
    fault = first_fault(content) or first_missing_key(content) or (by_address and first_without_address(content))
    return f'{path}: {fault}' if fault else None
