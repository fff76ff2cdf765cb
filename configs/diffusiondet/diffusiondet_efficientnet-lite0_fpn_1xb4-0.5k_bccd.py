# A few hundred pictures of one's own, in half an hour on one CPU core (docs/custom_dataset.md): all that was found to
# help while little has been seen. The environment variable MAX_ITERS makes it longer, the learning rate following.
_base_ = ['../benchmark/diffusiondet_efficientnet-lite0_fpn_1xb4_bccd.py']

model = dict(
    channels_last=True,  # a tenth less an iteration on a CPU (docs/performance.md)
    # Three draws of noise for each image in a training step; backbone and neck run once.
    train_cfg=dict(num_groups=3),
    bbox_head=dict(
        # Noise has the sizes of the objects: `mmdet-diffusion sizes data/bccd/annotations/train.json`.
        box_sampler=dict(
            signal_scale=None,
            padding='start',
            # Boxes near the objects in the first half of the training: it learns sooner to correct such boxes.
            jitter=dict(type='ObjectJitter'),
            coder=dict(type='SizeBBoxCoder', log_scale=(-1.727, 0.329), log_aspect=(-0.12, 0.095))),
        # The first boxes pass unchanged, instead of being moved at random until the stages have learnt.
        stage=dict(init_cfg=dict(type='Constant', val=0, bias=0, override=dict(name='fc_reg'))),
        criterion=dict(
            # More queries an object to learn from, and three where none overlaps it yet.
            assigner=dict(num_candidates=12, min_queries=3),
            # Scores rank by overlap, so that suppression keeps the tightest box.
            class_targets='iou',
            loss_cls=dict(_delete_=True, type='VarifocalLoss', loss_weight=1.0))),
    # Teaches the backbone at every pixel; dropped at test time.
    auxiliary_head=dict(
        type='FCOSHead',
        in_channels=128,
        feat_channels=128,
        stacked_convs=1,
        strides=[4, 8, 16, 32],
        regress_ranges=((-1, 24), (24, 48), (48, 96), (96, 1e8)),
        norm_on_bbox=True,
        centerness_on_reg=True,
        center_sampling=True,
        norm_cfg=dict(type='GN', num_groups=8, requires_grad=True),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
        loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0)),
    test_cfg=dict(num_proposals=300, start_noise='even'))

default_hooks = dict(checkpoint=dict(interval=100, max_keep_ckpts=1))
