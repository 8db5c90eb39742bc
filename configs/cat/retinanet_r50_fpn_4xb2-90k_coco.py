_base_ = [
    '../_base_/models/retinanet_r50_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/cat_det_90k.py',
    '../_base_/mmdet_iter_runtime.py',
]

# The paper names one rate, 0.02, in a sentence about Faster R-CNN. Detectron2 gives RetinaNet half
# the rate of Faster R-CNN.
optim_wrapper = dict(optimizer=dict(lr=0.01))
