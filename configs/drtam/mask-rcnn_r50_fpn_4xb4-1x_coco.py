_base_ = [
    '../_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/drtam_det_1x.py',
    '../_base_/mmdet_runtime.py',
]

train_dataloader = dict(batch_size=4)
