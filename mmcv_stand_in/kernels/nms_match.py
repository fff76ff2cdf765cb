"""Groups of boxes around those that non-maximum suppression keeps."""

from torch import Tensor

from .box_overlaps import intersection_and_union


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Each box that is kept, with those that it suppresses.

    Args:
        dets (Tensor): absolute xyxy in pixels and score, shape (N, 5).
        iou_threshold (float): a box whose IoU with a kept one is this or above is suppressed.

    Returns:
        list[list[int]]: indices; of each group the kept one first, then the others, both by falling score.
    """
    left = dets[:, 4].sort(0, descending=True)[1]
    groups = []
    while len(left):
        first, left = left[0], left[1:]
        shared, covered = intersection_and_union(dets[first, None, :4], dets[left, :4], offset=0)
        is_suppressed = (shared / covered >= iou_threshold)[0]
        groups.append([int(first), *left[is_suppressed].tolist()])
        left = left[~is_suppressed]
    return groups
