_base_ = [
    '../_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_instance_ms.py',
    '../_base_/schedules/cat_det_90k.py',
    '../_base_/mmdet_iter_runtime.py',
]

# As in Detectron2: FrozenBN, gates' norms that live, a region is of the object that it overlaps most.
norms = dict(norm_cfg=dict(type='BN', requires_grad=False), plugin_defaults=dict(norm_eval=False))
assigner = dict(match_low_quality=False)
model = dict(backbone=norms, train_cfg=dict(rcnn=dict(assigner=assigner)))
train_dataloader = dict(batch_size=4)
