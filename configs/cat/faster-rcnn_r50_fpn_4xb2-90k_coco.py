_base_ = [
    '../_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/cat_det_90k.py',
    '../_base_/mmdet_iter_runtime.py',
]
