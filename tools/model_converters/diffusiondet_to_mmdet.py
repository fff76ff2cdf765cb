r"""Convert a checkpoint of the authors' DiffusionDet (detectron2 layout; ResNet or Swin) to this package's layout.

Examples:
    python tools/model_converters/diffusiondet_to_mmdet.py diffdet_coco_res50.pth diffusiondet_r50_coco.pth
    python tools/model_converters/diffusiondet_to_mmdet.py diffdet_lvis_swinbase.pth diffusiondet_swin-b_lvis.pth \
      --check diffusiondet_swin-b-p4-w7-in22k_fpn_8xb2-270k_lvis-v1
"""

import mmdet_diffusion  # noqa: F401  isort: skip  first: it makes the operators of mmcv available
import argparse
import sys
from pathlib import Path

from checkpoint_files import Source, read_source, refuse_destination, write
from diffusiondet_keys import DROPPED, ConversionError, convert_name, convert_value
from diffusiondet_sizes import (
    ModelSizes,
    differences,
    expected_shapes,
    list_names,
    read_sizes,
    shapes_of,
    suggested_configs,
)
from mmdet.datasets import CocoDataset, LVISV1Dataset
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch import Tensor

from diffusiondet_runtime.folder import sha256
from mmdet_diffusion.config_zoo import resolve_config

DATASETS = {80: CocoDataset, 1203: LVISV1Dataset}


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a whole state dict and reorder what is laid out in another way.

    Args:
        state (dict[str, Tensor]): in the authors' layout.

    Returns:
        dict[str, Tensor]: in this package's layout, all that a model needs; what is computed anew is left out.

    Raises:
        ConversionError: if a key is not known, or a part of the model is missing or of another size; lists them.
    """
    kept = {name: value for name, value in state.items() if name not in DROPPED}
    unknown = [name for name in kept if convert_name(name) is None]
    if unknown:
        ours = any(name.startswith('bbox_head.stages.') for name in unknown)
        raise ConversionError(f'{len(unknown)} of {len(state)} keys are not of DiffusionDet with a ResNet or Swin and '
                              f"FPN in the authors' layout: {list_names(unknown)}"
                              + ('. This is a checkpoint of this package: it needs no conversion' if ours else ''))
    converted = {convert_name(name): convert_value(name, value) for name, value in kept.items()}
    shapes = shapes_of(converted)
    problems = differences(shapes, expected_shapes(read_sizes(shapes)))
    if problems:
        raise ConversionError(f'the checkpoint {"; it ".join(problems)}')
    return converted


def check(state: dict[str, Tensor], config: str) -> None:
    """Load the weights strictly into the model of a config.

    Args:
        state (dict[str, Tensor]): in this package's layout.
        config (str): path of a detector's config, or the name of one of this package's.

    Raises:
        ConversionError: if the config cannot be read or the weights do not fit its model; lists what does not.
    """
    try:
        cfg = Config.fromfile(resolve_config(config))
    except Exception as error:
        raise ConversionError(f'{config} cannot be read as a config: {error}') from error
    if 'model' not in cfg:
        raise ConversionError(f'{config} is no config of a detector: it has no model')
    register_all_modules(init_default_scope=True)
    model = MODELS.build(cfg.model)
    problems = differences(shapes_of(state), shapes_of(model.state_dict()))
    if problems:
        raise ConversionError(f'the checkpoint does not fit {config}: it {"; it ".join(problems)}')
    model.load_state_dict(state, strict=True)


def make_meta(source: Path, sizes: ModelSizes) -> dict:
    """What MMDetection's tools read beside the weights, and where the weights come from.

    Args:
        source (Path): the file that was converted.
        sizes (ModelSizes): of its model.

    Returns:
        dict: ``dataset_meta`` with the class names, where the number of classes is that of COCO or LVIS;
        ``suggested_configs``; the source's name and SHA-256.
    """
    meta = dict(suggested_configs=suggested_configs(sizes), source=source.name, source_sha256=sha256(source))
    dataset = DATASETS.get(sizes.stage['num_classes'])
    if dataset is not None:
        meta['dataset_meta'] = dict(dataset.METAINFO)
    return meta


def report(destination: Path, source: Source, converted: dict[str, Tensor], meta: dict) -> str:
    """What was done, for the user to read."""
    dropped = [name for name in source.state if name in DROPPED]
    classes = meta.get('dataset_meta', {}).get('classes')
    num_classes = len(converted['bbox_head.stages.0.fc_cls.bias'])
    lines = [
        f'{destination}: {len(converted)} tensors'
        + (f", the ones under '{source.wrapper}'" if source.wrapper else ''),
        f'left out, since the model computes them: {", ".join(dropped) or "nothing"}',
        f'classes: {num_classes}, ' + (f'{classes[0]} to {classes[-1]}' if classes else
                                       'neither those of COCO nor of LVIS, so without names'),
        'config: ' + (' or '.join(meta['suggested_configs']) or 'none of this package has these sizes'),
    ]
    return '\n'.join(lines)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help="the authors' checkpoint")
    parser.add_argument('destination', type=Path, help='the file to write')
    parser.add_argument('--check', metavar='CONFIG',
                        help='path or name of a config: write only if the weights fit its model exactly')
    args = parser.parse_args()
    try:
        refuse_destination(args.destination)
        source = read_source(args.source)
        converted = convert(source.state)
        if args.check:
            check(converted, args.check)
        meta = make_meta(args.source, read_sizes(shapes_of(converted)))
        write(converted, meta, args.destination)
    except ConversionError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(report(args.destination, source, converted, meta))
    if args.check:
        print(f'fits {args.check}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
