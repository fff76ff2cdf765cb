"""The operators that have no stand-in: who wants them, and what to do."""

from collections.abc import Callable
from typing import NamedTuple, NoReturn

CURE = ('install mmcv with its compiled operators (`MMCV_WITH_OPS=1 pip install --no-build-isolation mmcv==2.1.0` '
        'where a C++ compiler, torch, setuptools<82 and ninja are installed)')


class Family(NamedTuple):
    """Operators that belong together.

    Attributes:
        operators (tuple[str, ...]): how their names in ``mmcv._ext`` begin.
        layers (tuple[str, ...]): classes of ``mmcv.ops`` that cannot run without them.
        wanted_by (str): what in a config asks for them.
        instead (str): what can take their place, after "or"; empty where nothing can.
    """

    operators: tuple[str, ...]
    layers: tuple[str, ...]
    wanted_by: str
    instead: str = ''


OTHER = Family((), (), 'parts that name this operator')

FAMILIES = (
    Family(('carafe',), ('CARAFE', 'CARAFEPack', 'CARAFENaive'),
           "upsample_cfg=dict(type='carafe'), as in FPN_CARAFE and FCNMaskHead",
           "another upsample_cfg, such as dict(type='nearest')"),
    Family(('masked_',), ('MaskedConv2d',), 'GARPNHead, GARetinaHead and FeatureAdaption of Guided Anchoring'),
    Family(('sync_bn',), ('SyncBatchNorm',), "norm_cfg=dict(type='MMSyncBN')",
           "norm_cfg=dict(type='SyncBN'), which is torch's own"),
    Family(('softmax_focal_loss',), ('SoftmaxFocalLoss',), 'SoftmaxFocalLoss'),
    Family(('deform_roi_pool',), ('DeformRoIPool',),
           "roi_layer=dict(type='DeformRoIPoolPack') or 'ModulatedDeformRoIPoolPack'",
           "roi_layer=dict(type='RoIAlign')"),
    Family(('prroi_pool',), ('PrRoIPool',), "roi_layer=dict(type='PrRoIPool')", "roi_layer=dict(type='RoIAlign')"),
    Family(('nms_rotated', 'nms_quadri'), (), "nms=dict(type='nms_rotated') or 'nms_quadri'"),
    Family(('line_nms',), (), 'lane detectors, in onedl-mmcv'),
    Family(('roi_align_rotated', 'riroi_align_rotated'), ('RoIAlignRotated', 'RiRoIAlignRotated'),
           "roi_layer=dict(type='RoIAlignRotated') or 'RiRoIAlignRotated', of rotated detectors"),
    Family(('active_rotated_filter', 'rotated_feature_align', 'box_iou_rotated', 'box_iou_quadri', 'diff_iou_rotated',
            'convex_', 'min_area_polygons', 'points_in_polygons', 'chamfer_distance'), (), 'rotated detectors'),
    Family(('border_align',), ('BorderAlign',), 'BorderDet'),
    Family(('bezier_align',), ('BezierAlign',), "roi_layer=dict(type='BezierAlign'), of text spotters"),
    Family(('contour_expand', 'pixel_group'), (), 'text detectors'),
    Family(('psamask',), ('PSAMask',), 'PSAHead of segmentation models'),
    Family(('correlation',), ('Correlation',), 'optical flow'),
    Family(('tin_shift',), ('TINShift',), 'ResNetTIN of action recognition'),
    Family(('bias_act', 'filtered_lrelu', 'upfirdn2d', 'fused_bias_leakyrelu'), (), 'StyleGAN, on a GPU'),
    Family(('bbox_overlaps',), (), 'mmcv.ops.bbox_overlaps on a GPU', 'bbox_overlaps of mmdet'),
    Family(('hard_voxelize', 'dynamic_voxelize', 'dynamic_point_to_voxel'), ('Voxelization', 'DynamicScatter'),
           'voxel layers of 3-D detectors'),
    Family(('get_indice_pairs', 'indice_', 'fused_indice'),
           ('SparseConvolution', 'SparseMaxPool'), 'sparse convolutions of 3-D detectors'),
    Family(('assign_score_withk', 'ball_query', 'stack_ball_query', 'furthest_point', 'gather_points', 'group_points',
            'stack_group_points', 'iou3d', 'knn', 'points_in_boxes', 'roiaware_pool3d', 'roipoint_pool3d', 'three_'),
           ('RoIAwarePool3d', 'RoIPointPool3d', 'QueryAndGroup', 'PointsSampler'), '3-D detectors'),
)


def family_of_layer(name: str) -> Family | None:
    """Operators that a class of ``mmcv.ops`` cannot run without; None where all that it needs are there."""
    return next((family for family in FAMILIES if name in family.layers), None)


def family_of_operator(name: str) -> Family:
    """Operators that a name in ``mmcv._ext`` is one of."""
    return next((family for family in FAMILIES if name.startswith(family.operators)), OTHER)


def refusal(what: str, family: Family) -> str:
    """The sentence on something that cannot run, and its cure."""
    instead = f', or use {family.instead}' if family.instead else ''
    return (f'{what} has no stand-in in mmcv_stand_in, which is in use since no compiled operators of mmcv are; it is '
            f'wanted by {family.wanted_by}. Cure: {CURE}{instead}')


def refusing_function(name: str) -> Callable[..., NoReturn]:
    """A function in an operator's place.

    Args:
        name (str): in ``mmcv._ext``.

    Returns:
        Callable: raises NotImplementedError, whatever it is called with.
    """

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(refusal(f'the operator {name}', family_of_operator(name)))

    refuse.__name__ = refuse.__qualname__ = name
    return refuse
