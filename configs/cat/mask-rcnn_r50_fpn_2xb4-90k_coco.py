_base_ = [
    '../_base_/models/mask-rcnn_r50_fpn_detectron2.py',
    '../_base_/datasets/coco_instance_ms.py',
    '../_base_/schedules/cat_det_90k.py',
    '../_base_/mmdet_iter_runtime.py',
]

train_dataloader = dict(batch_size=4)
