_base_ = [
    '../_base_/models/resnet101_in1k.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/cat_in1k_100e.py',
    '../_base_/mmpretrain_runtime.py',
]

# As in the codes of CBAM and ECA-Net, whose printed results most of Table 4 are.
model = dict(backbone=dict(zero_init_residual=False))
