"""Settings of sampling that are tested against each other."""

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

from ..heads import DynamicDiffusionHead
from ..sampling_settings import SamplingSettings, steps_and_boxes
from .shared_features import HELD_STEP

CONTROLS = {
    'no renewal': dict(renewal_score_thr=None),
    'all boxes fresh at each step': dict(renewal_score_thr=1.0),
    'all boxes fresh, step held at the last one': {'renewal_score_thr': 1.0, HELD_STEP: True},
    'no ensemble': dict(ensemble='last'),
    'eta 0': dict(eta=0.0),
    'as many boxes in one step': {},
}
NMS = dict(type='nms')  # where a config has none
MANY_IN_ONE = 'as many boxes in one step'


class DialSetting(NamedTuple):
    """A point of the dial.

    Attributes:
        steps (int): sampling steps.
        boxes (int): start boxes.
        changes (tuple[tuple[str, object], ...]): other values of ``test_cfg`` than the config's; of ``nms`` its
            ``iou_threshold``.
        control (str): what it is a control for; empty for a setting that is meant to be used.
        configured_nms (tuple[tuple[str, object], ...]): what the config has under ``nms``, if that is changed; empty
            where it has none.
    """

    steps: int
    boxes: int
    changes: tuple[tuple[str, object], ...] = ()
    control: str = ''
    configured_nms: tuple[tuple[str, object], ...] = ()

    @property
    def label(self) -> str:
        """``4x300, eta 0.0``."""
        named = [self.control] if self.control else [f'{name} {value}' for name, value in self.changes]
        return ', '.join([f'{self.steps}x{self.boxes}', *named])

    def values(self) -> dict[str, object]:
        """Changes of ``test_cfg``, as :func:`test_cells` takes them."""
        changes = {name: dict(dict(self.configured_nms) or NMS, iou_threshold=value) if name == 'nms' else value
                   for name, value in self.changes}
        return dict(sampling_timesteps=self.steps, num_proposals=self.boxes, **changes)

    def options(self) -> str:
        """What to paste after ``--cfg-options``."""
        values = self.values()
        nms = values.pop('nms', None)
        if nms is not None and self.configured_nms:
            values['nms.iou_threshold'] = nms['iou_threshold']
        elif nms is not None:  # a dict in place of None
            values |= {'nms._delete_': True, **{f'nms.{name}': value for name, value in nms.items()}}
        return ' '.join(f'model.test_cfg.{name}={value}' for name, value in values.items())

    def check(self, head: DynamicDiffusionHead) -> None:
        """Refuse values out of range.

        Raises:
            ValueError: names the key and what is allowed.
        """
        changes = {name: value for name, value in self.values().items() if name != HELD_STEP}
        SamplingSettings.from_cfg(dict(head.test_cfg or {}, **changes), head.num_proposals,
                                  head.box_sampler.num_train_timesteps)


def dial_setting(text: str) -> DialSetting:
    """``4x100`` to a setting of 4 steps and 100 boxes, as a type of ``argparse``."""
    try:
        return DialSetting(*steps_and_boxes(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def grid(pairs: Sequence[tuple[int, int]], configured: Mapping[str, object], *, controls: bool = False,
         **values: Sequence[object]) -> list[DialSetting]:
    """All combinations, each once.

    Args:
        pairs (Sequence[tuple[int, int]]): steps and boxes.
        configured (Mapping[str, object]): ``test_cfg`` of the config; a value that it has already, or that holds where
            it has none, is no change.
        controls (bool): besides, :data:`CONTROLS` of every pair of more than one step, and that as it is configured.
        **values (Sequence[object]): of keys of ``test_cfg``; ``nms`` stands for its ``iou_threshold``.

    Returns:
        list[DialSetting]: in the order of the values.
    """
    keys = [key for key, options in values.items() if options]
    nms = configured.get('nms') or {}
    configured = dict(SamplingSettings._field_defaults, **dict(configured, nms=nms.get('iou_threshold')))
    settings = []
    for (steps, boxes), *chosen in product(pairs, *(values[key] for key in keys)):
        changes = tuple((key, value) for key, value in zip(keys, chosen, strict=True)
                        if value != configured[key])
        settings.append(DialSetting(steps, boxes, changes,
                                    configured_nms=tuple(nms.items()) if 'nms' in dict(changes) else ()))
    if controls:
        for steps, boxes in pairs:
            if steps > 1:
                settings.append(DialSetting(steps, boxes))  # that they are compared with
            for name, changes in CONTROLS.items() if steps > 1 else ():
                shape = (1, steps * boxes) if name == MANY_IN_ONE else (steps, boxes)
                settings.append(DialSetting(*shape, tuple(changes.items()), name))
    return list(dict.fromkeys(settings))
