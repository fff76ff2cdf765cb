"""Several predictions of a model: one pass of backbone and neck for all of a batch, each at settings of its own."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def features_once(model: nn.Module) -> Iterator[dict[str, float]]:
    """Let a model compute the features of a batch at its first prediction and give the same at the next ones.

    Gives the seconds that they took: ``all``, and ``here`` since that was last set to 0.
    """
    extract_feat, kept, seconds = model.extract_feat, [], dict(all=0.0, here=0.0)

    def once(batch_inputs: Tensor) -> tuple[Tensor, ...]:
        if not kept:
            wait_for(batch_inputs.device)
            start = time.perf_counter()
            kept.append(extract_feat(batch_inputs))
            wait_for(batch_inputs.device)
            seconds['all'] = seconds['here'] = time.perf_counter() - start
        return kept[0]

    model.extract_feat = once
    try:
        yield seconds
    finally:
        del model.extract_feat  # the class's own comes back


@contextmanager
def at_settings(head: nn.Module, changes: Mapping[str, object]) -> Iterator[None]:
    """Let a head predict with other values in its ``test_cfg``; the configured ones come back."""
    configured = head.test_cfg
    head.test_cfg = dict(configured or {}, **changes)
    try:
        yield
    finally:
        head.test_cfg = configured


def wait_for(device: torch.device) -> None:
    """Let a GPU end what it was given, before a clock is read."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
