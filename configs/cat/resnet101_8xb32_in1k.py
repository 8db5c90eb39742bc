_base_ = [
    '../_base_/models/resnet101_in1k.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/cat_in1k_100e.py',
    '../_base_/mmpretrain_runtime.py',
]
