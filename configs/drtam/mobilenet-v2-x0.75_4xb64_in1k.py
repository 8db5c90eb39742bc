_base_ = [
    '../_base_/models/mobilenet-v2-x0.75_in1k.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/drtam_mobilenet_in1k_300e.py',
    '../_base_/mmpretrain_runtime.py',
]

train_dataloader = dict(batch_size=64)
