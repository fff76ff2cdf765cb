"""Several predictions of a model: one pass of backbone and neck for all of a batch, each at settings of its own."""

import time
from collections.abc import Callable, Iterator, Mapping
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


class FirstSteps:
    """A head's first steps: those of one number of boxes and one noise are the same, however many steps come after.

    Args:
        head (nn.Module): a :class:`DynamicDiffusionHead`.

    Attributes:
        seconds (float): that the step took which the last prediction did not need to take; 0 where it took it itself.
    """

    def __init__(self, head: nn.Module) -> None:
        self.head, self.seconds = head, 0.0
        self._known: list[tuple[Tensor, Tensor, list, float]] = []

    @contextmanager
    def once(self) -> Iterator[None]:
        """Within it one prediction of the batch runs, which takes its first step from an earlier one if it can."""
        self.seconds, is_first = 0.0, True

        def refine(*inputs: object) -> list:
            nonlocal is_first
            was_first, is_first = is_first, False
            return self._first_step(plain, *inputs) if was_first else plain(*inputs)

        with refined_by(self.head, refine) as plain:
            yield

    def _first_step(self, refine: Callable, box_features: object, bboxes: Tensor, t: Tensor) -> list:
        """Outputs of the stages, of an earlier call with the same boxes and step if there was one."""
        for known, known_t, outputs, seconds in self._known:
            if torch.equal(known, bboxes) and torch.equal(known_t, t):
                self.seconds = seconds
                return outputs
        wait_for(bboxes.device)
        start = time.perf_counter()
        outputs = refine(box_features, bboxes, t)
        wait_for(bboxes.device)
        self._known.append((bboxes, t, outputs, time.perf_counter() - start))
        return outputs


@contextmanager
def refined_by(head: nn.Module, refine: Callable) -> Iterator[Callable]:
    """Let another function take the place of a head's refinement; gives the one before, which comes back."""
    own = vars(head).get('_refine')
    before, head._refine = head._refine, refine
    try:
        yield before
    finally:
        if own is None:
            del head._refine  # the class's own comes back
        else:
            head._refine = own


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
