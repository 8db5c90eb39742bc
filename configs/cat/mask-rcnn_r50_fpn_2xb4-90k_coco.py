_base_ = [
    '../_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_instance_ms.py',
    '../_base_/schedules/cat_det_90k.py',
    '../_base_/mmdet_iter_runtime.py',
]

# As in Detectron2: FrozenBN, gates' norms that live, as in the detection rows, and a region is always
# of the object that it overlaps most.
norm_cfg = dict(type='BN', requires_grad=False)
model = dict(
    backbone=dict(norm_cfg=norm_cfg, plugin_defaults=dict(norm_eval=False)),
    train_cfg=dict(rcnn=dict(assigner=dict(match_low_quality=False))),
)
train_dataloader = dict(batch_size=4)
