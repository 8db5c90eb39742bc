_base_ = [
    '../_base_/models/resnet50_in1k.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/drtam_resnet_in1k_100e.py',
    '../_base_/mmpretrain_runtime.py',
]

train_dataloader = dict(batch_size=128)
