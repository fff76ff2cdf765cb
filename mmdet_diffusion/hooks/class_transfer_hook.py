"""Hook that starts the class layers of fine-tuning from those of a checkpoint with other classes, by name."""

import re
from collections.abc import Mapping, Sequence

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from torch import Tensor

from .whole_state import whole_state

CLASS_LAYER = re.compile(r'(module\.)?(?P<name>bbox_head\.stages\.\d+\.fc_cls\.(weight|bias))')


@HOOKS.register_module()
class ClassTransferHook(Hook):
    """Rows of the class layers of ``load_from`` go to the classes of the same name, whatever their number and order.

    The other rows stay as they were initialised. Names are compared without case, and with spaces, hyphens and
    underscores as one. The checkpoint has to name its classes, as those of mmengine and of this package's converter do.
    Resuming and testing are left alone.

    Args:
        source_names (Mapping[str, str], optional): what the checkpoint calls one's own class, where it is another name,
            such as ``dict(automobile='car')``.

    Raises:
        ValueError: at the start of training, if ``source_names`` has a class that the data set or the checkpoint lacks.
    """

    priority = 'ABOVE_NORMAL'  # before CheckpointReportHook, which says what does not fit

    def __init__(self, source_names: Mapping[str, str] | None = None) -> None:
        self.source_names = dict(source_names or {})

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the rows of the class layers in the order of the data set.

        Args:
            runner (Runner): with the model and the training data.
            checkpoint (dict): with ``meta`` and ``state_dict``; its class layers are replaced.
        """
        if runner._resume or not isinstance(runner._train_loop, BaseLoop):
            return
        classes = runner.train_dataloader.dataset.metainfo.get('classes', ())
        given = class_names(checkpoint)
        if not given or not classes:
            runner.logger.warning(f'the {"data set" if given else "checkpoint"} names no classes, so no class layer is '
                                  "taken over by a class's name")
            return
        sources = match_names(classes, given, self.source_names)
        if not transfer_rows(checkpoint['state_dict'], whole_state(runner.model), sources):
            runner.logger.warning('no class layer of the checkpoint is one of the model, since it is of another '
                                  'detector or of another width. All classes start from the prior')
            return
        taken = [name for name, source in zip(classes, sources, strict=True) if source is not None]
        runner.logger.info(f'{len(taken)} of {len(classes)} classes start from the class layers of the checkpoint: '
                           f'{", ".join(taken) or "none"}; the others from the prior. Other names of the checkpoint '
                           'can be given as source_names of ClassTransferHook')


def class_names(checkpoint: dict) -> tuple[str, ...]:
    """Classes that a checkpoint names in its ``meta``; none where it has no such entry."""
    meta = checkpoint.get('meta', {}).get('dataset_meta') or {}
    return tuple(meta.get('classes', ()))


def match_names(classes: Sequence[str], given: Sequence[str], source_names: Mapping[str, str]) -> list[int | None]:
    """Places of the data set's classes among those of the checkpoint.

    Args:
        classes (Sequence[str]): of the data set.
        given (Sequence[str]): of the checkpoint.
        source_names (Mapping[str, str]): what the checkpoint calls a class of the data set.

    Returns:
        list[int | None]: for each of ``classes``; None where the checkpoint has none of that name.

    Raises:
        ValueError: if ``source_names`` has a class that is in neither list.
    """
    places = {_spelling(name): place for place, name in reversed(list(enumerate(given)))}
    for name, source in source_names.items():
        if name not in classes:
            raise ValueError(f'source_names of ClassTransferHook has {name!r}, which the data set lacks; its classes '
                             f'are {", ".join(classes)}')
        if _spelling(source) not in places:
            raise ValueError(f'source_names of ClassTransferHook has {source!r} for {name!r}, which the checkpoint '
                             f'lacks; its classes are {", ".join(given)}')
    return [places.get(_spelling(source_names.get(name, name))) for name in classes]


def transfer_rows(state: dict[str, Tensor], own: Mapping[str, Tensor], sources: Sequence[int | None]) -> int:
    """Replace the class layers of a state dict by the model's own, with the rows that the former has.

    Args:
        state (dict[str, Tensor]): of the checkpoint; changed.
        own (Mapping[str, Tensor]): of the model.
        sources (Sequence[int | None]): row of the checkpoint for each row of the model.

    Returns:
        int: tensors that were replaced.
    """
    targets = [target for target, source in enumerate(sources) if source is not None]
    rows = [source for source in sources if source is not None]
    replaced = 0
    for name, value in state.items():
        layer = CLASS_LAYER.fullmatch(name)
        if layer and layer['name'] in own and _is_as_wide(state, name, own, layer['name']):
            replaced += 1
            mixed = own[layer['name']].detach().cpu().clone()
            mixed[targets] = value[rows].to(mixed)
            state[name] = mixed
    return replaced


def _is_as_wide(state: Mapping[str, Tensor], name: str, own: Mapping[str, Tensor], own_name: str) -> bool:
    """Whether a layer has the model's number of inputs; else it is left to the report of what does not fit."""
    given, wanted = (values.get(one.replace('.bias', '.weight')) for values, one in ((state, name), (own, own_name)))
    return given is not None and wanted is not None and given.shape[1:] == wanted.shape[1:]


def _spelling(name: str) -> str:
    return re.sub(r'[\s_-]+', ' ', name.strip()).casefold()
