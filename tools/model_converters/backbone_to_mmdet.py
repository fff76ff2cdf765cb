"""Convert backbone weights in detectron2's pickles (torchvision's ResNet, Microsoft's Swin) to MMDetection's layout.

torchvision's and Microsoft's own .pth files need no conversion: docs/tools.md.

Example:
    python tools/model_converters/backbone_to_mmdet.py torchvision-R-101.pkl r101.pth
"""

import argparse
import pickle
import re
import sys
from pathlib import Path

import torch
from checkpoint_files import read_source, refuse_destination, write
from diffusiondet_keys import ConversionError, convert_name, convert_value
from diffusiondet_sizes import build_backbone, differences, list_names, read_backbone, shapes_of
from torch import Tensor

# What a pickle of numpy arrays needs, under the module names of numpy 1 and 2; nothing here can run a command.
ALLOWED = {
    ('numpy', 'ndarray'), ('numpy', 'dtype'), ('numpy.core.multiarray', '_reconstruct'),
    ('numpy._core.multiarray', '_reconstruct'), ('collections', 'OrderedDict'), ('_codecs', 'encode')
}
CLASSIFIER = r'stem\.fc\..*|fc\..*|head\..*|norm\.(weight|bias)|.*\.num_batches_tracked|.*\.attn_mask'
OUTPUT_NORM = re.compile(r'backbone\.norm[0-3]\.(weight|bias)')  # of a Swin detector; a classifier has none


class ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays in dicts and lists, and refuses everything else."""

    def find_class(self, module: str, name: str) -> object:
        """Give what the file asks for if it is allowed."""
        if (module, name) not in ALLOWED:
            raise ConversionError(f'it asks for {module}.{name}')
        return super().find_class(module, name)


def read_pickle(file: Path) -> dict[str, Tensor]:
    """Read a pickle of detectron2's model zoo without running any code that it may hold.

    Args:
        file (Path): a pickled dict of arrays, or one with such a dict under ``model``.

    Returns:
        dict[str, Tensor]: by the file's names.

    Raises:
        ConversionError: if the file holds anything but arrays.
    """
    try:
        with file.open('rb') as stream:
            content = ArrayUnpickler(stream, encoding='latin1').load()
        content = content.get('model', content)
        return {name: torch.from_numpy(value) for name, value in content.items()}
    except OSError as error:
        raise ConversionError(f'{file} cannot be read: {error.strerror}') from error
    except Exception as error:
        reason = error if isinstance(error, ConversionError) else type(error).__name__
        raise ConversionError(f"{file} is no pickle of arrays in detectron2's layout ({reason})") from error


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a backbone and reorder Swin's patch merging.

    Args:
        state (dict[str, Tensor]): in detectron2's layout of a ResNet or in Microsoft's of a Swin.

    Returns:
        dict[str, Tensor]: in MMDetection's, each name with ``backbone.`` before it; without the classifier.

    Raises:
        ConversionError: if a key is not known or a part of the backbone is missing; lists them.
    """
    theirs = {f'backbone.bottom_up.{name}': value for name, value in state.items()
              if not re.fullmatch(CLASSIFIER, name)}
    unknown = [name.removeprefix('backbone.bottom_up.') for name in theirs if convert_name(name) is None]
    if unknown:
        raise ConversionError(f"{len(unknown)} of {len(state)} keys are neither those of detectron2's ResNet (stem, "
                              f"res2 to res5) nor of Microsoft's Swin: {list_names(unknown)}")
    converted = {convert_name(name): convert_value(name, value) for name, value in theirs.items()}
    shapes = shapes_of(converted)
    expected = shapes_of({f'backbone.{name}': value for name, value in
                          build_backbone(read_backbone(shapes)[0]).state_dict().items()})
    required = {name: shape for name, shape in expected.items() if name in shapes or not OUTPUT_NORM.fullmatch(name)}
    problems = differences(shapes, required)
    if problems:
        raise ConversionError(f'the file {"; it ".join(problems)}')
    return converted


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='a pickle (.pkl), or a file of torch.save in the same layout')
    parser.add_argument('destination', type=Path, help='the file to write')
    args = parser.parse_args()
    try:
        refuse_destination(args.destination)
        is_pickle = args.source.suffix == '.pkl'
        converted = convert(read_pickle(args.source) if is_pickle else read_source(args.source).state)
        write(converted, {}, args.destination)
    except ConversionError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    cfg = read_backbone(shapes_of(converted))[0]
    loads = f"init_cfg=dict(type='Pretrained', checkpoint='{args.destination}'"
    usage = f'convert_weights=False, {loads})' if cfg['type'] == 'SwinTransformer' else f"{loads}, prefix='backbone.')"
    print(f'{args.destination}: {len(converted)} tensors of {cfg}\nin the config: backbone=dict({usage})')
    return 0


if __name__ == '__main__':
    sys.exit(main())
