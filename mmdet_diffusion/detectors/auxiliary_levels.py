"""Which levels of the pyramid an auxiliary dense head learns from: those whose strides it has."""

from collections.abc import Sequence

from torch import Tensor, nn


class AuxiliaryLevels:
    """Takes the levels for a dense head from a pyramid; all of them where the head does not say what strides it has.

    Leaving out the finest level, which has most of the cells, makes the head several times cheaper.

    Args:
        head (nn.Module): one of MMDetection's dense heads.
        featmap_strides (Sequence[int]): of the pyramid's levels that the diffusion head looks up; each level of the
            pyramid past them has twice the stride of the one before.
        num_levels (int, optional): of the pyramid, where it is known.

    Raises:
        ValueError: if its strides are not a run of the pyramid's, it has not one regress range for each, or the pyramid
            has too few levels.
    """

    def __init__(self, head: nn.Module, featmap_strides: Sequence[int], num_levels: int | None = None) -> None:
        self.taken, self.strides = slice(None), None
        generator = getattr(head, 'prior_generator', None)
        if generator is None:
            return
        self.strides = [max(stride) if isinstance(stride, (tuple, list)) else stride for stride in generator.strides]
        pyramid = list(featmap_strides)
        while pyramid[-1] < self.strides[-1]:
            pyramid.append(2 * pyramid[-1])
        first = pyramid.index(self.strides[0]) if self.strides[0] in pyramid else 0
        self.taken = slice(first, first + len(self.strides))
        if pyramid[self.taken] != self.strides:
            raise ValueError(f'auxiliary_head ({type(head).__name__}) has strides {self.strides}, but the pyramid has '
                             f'{list(featmap_strides)} (bbox_head.roi_extractor.featmap_strides) and twice the last '
                             'from there on; give it some of them that follow one another')
        ranges = getattr(head, 'regress_ranges', None)  # of FCOS and its kind
        if ranges is not None and len(ranges) != len(self.strides):
            raise ValueError(f'auxiliary_head ({type(head).__name__}) has strides {self.strides}, but '
                             f'{len(ranges)} regress_ranges, {list(ranges)}; give it one for each stride: from and to '
                             'which distance in pixels its level learns')
        if num_levels is not None:
            self._check(num_levels)

    def __call__(self, feats: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The levels among all, finest first.

        Raises:
            ValueError: if the pyramid has too few.
        """
        self._check(len(feats))
        return feats[self.taken]

    def _check(self, num_levels: int) -> None:
        if self.strides is not None and num_levels < self.taken.stop:
            raise ValueError(f'auxiliary_head has strides {self.strides}, but the neck gives {num_levels} levels; '
                             'leave out the coarsest of its strides, or raise num_outs of the neck')
