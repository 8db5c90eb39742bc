_base_ = [
    '../_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/voc0712.py',
    '../_base_/schedules/cat_det_18k.py',
    '../_base_/mmdet_iter_runtime.py',
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=20)))
