_base_ = [
    '../_base_/models/resnet101_in1k.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/drtam_resnet_in1k_100e.py',
    '../_base_/mmpretrain_runtime.py',
]

# 96 images a GPU, and the rate of ResNet-50: 0.2.
train_dataloader = dict(batch_size=96)
auto_scale_lr = dict(base_batch_size=384)
