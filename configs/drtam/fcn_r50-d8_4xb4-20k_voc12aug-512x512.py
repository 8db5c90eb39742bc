_base_ = [
    '../_base_/models/fcn_r50-d8.py',
    '../_base_/datasets/voc12aug_512x512.py',
    '../_base_/schedules/drtam_seg_20k.py',
    '../_base_/mmseg_runtime.py',
]
