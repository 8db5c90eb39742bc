# Detectron2's, where MMDetection's differs: FrozenBN, norms of gates that live (see
# faster-rcnn_r50_fpn.py), and a region is always of the object that it overlaps most.
_base_ = './mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        norm_cfg=dict(type='BN', requires_grad=False), plugin_defaults=dict(norm_eval=False)
    ),
    train_cfg=dict(rcnn=dict(assigner=dict(match_low_quality=False))),
)
