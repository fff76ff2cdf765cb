"""Whether a training can go on from a checkpoint, looked at before anything of it is used."""

import logging
from collections.abc import Sequence

from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor

from .checkpoint_report_hook import differences
from .whole_state import whole_state

NEEDED = ('meta', 'state_dict', 'message_hub', 'optimizer')
LENGTHS = ('end', 'T_max', 'total_iters', 'milestones', 'step_size', 'begin')  # of schedulers; the first says most


def drop_code(checkpoint: dict) -> None:
    """Take out what mmengine would run: the config of MMDetection 2 as Python text, in which it looks for a number of
    GPUs. Its own checkpoints have none.

    Args:
        checkpoint (dict): as it was read.
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict) and meta.pop('config', None) is not None:
        print_log('meta.config of the checkpoint is passed over: reading it would run it', 'current', logging.WARNING)


def refuse_partial_state(runner: Runner, checkpoint: dict) -> None:
    """Stop where a resumed training would start anew in part; mmengine goes on silently with what is there.

    Args:
        runner (Runner): with the model.
        checkpoint (dict): as it was read.

    Raises:
        ValueError: names what is missing, has another shape or is of another kind.
    """
    lacking = [key for key in NEEDED if not isinstance(checkpoint.get(key), dict)]
    if lacking:
        raise ValueError(f'it holds no {", ".join(lacking)} of a training, so that none can be resumed from it; for '
                         'its weights alone set load_from and leave out --resume')
    meta = checkpoint['meta']
    for key in ('epoch', 'iter'):
        if not isinstance(meta.get(key), int) or isinstance(meta[key], bool) or meta[key] < 0:
            raise ValueError(f'meta.{key} must be a number of what was trained, got {meta.get(key)!r}')
    if 'ema_state_dict' in checkpoint and not any(isinstance(hook, EMAHook) for hook in runner.hooks):
        raise ValueError('its training averages its weights, so that its state_dict is not what was trained: resume '
                         'with the EMAHook, or set load_from to the average and leave out --resume')
    _check_schedulers(_flat(runner.param_schedulers), _flat(checkpoint.get('param_schedulers')))
    if hasattr(runner, 'strategy'):  # a FlexibleRunner, whose processes may hold a part of each tensor
        return
    wanted = {name: value.shape for name, value in whole_state(runner.model).items()}
    given = {name: value.shape if isinstance(value, Tensor) else None
             for name, value in checkpoint['state_dict'].items()}
    for finding, names in differences(given, wanted).items():
        if names:
            raise ValueError(f'{len(names)} {finding}: {", ".join(map(str, names[:3]))}; a training goes on with the '
                             'model that it began with. For another one set load_from and leave out --resume')


def _flat(schedulers: Sequence | dict | None) -> list:
    """Of one optimiser, or of several by name."""
    lists = schedulers.values() if isinstance(schedulers, dict) else [schedulers or []]
    return [scheduler for one in lists for scheduler in one]


def _check_schedulers(built: Sequence, saved: Sequence[dict]) -> None:
    """mmengine passes over those that are missing, and a warm-up starts again from a rate that has been reached."""
    if len(built) != len(saved):
        raise ValueError(f'it holds {len(saved)} param_schedulers, and the config has {len(built)}: the learning rate '
                         'cannot go on as it was. Resume with the param_scheduler, and with the length (MAX_ITERS), '
                         'that it began with, and leave save_param_scheduler of the checkpoint hook at True')
    for scheduler, state in zip(built, saved, strict=True):
        for key in LENGTHS:
            if key in state and getattr(scheduler, key, state[key]) != state[key]:
                print_log(f'the learning rate goes on by the schedule of the checkpoint, with {key} {state[key]}, and '
                          f'not by that of the config, with {getattr(scheduler, key)}: resume with the length that '
                          'the training began with (MAX_ITERS, where the config has it)', 'current', logging.WARNING)
                return
