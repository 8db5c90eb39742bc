# DRTAM's ImageNet network, with basic blocks and a quarter of the width, on digits in ImageNet's
# folders.
_base_ = [
    '../_base_/models/resnet50_in1k.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/drtam_resnet_in1k_100e.py',
    './_base_/mmpretrain_short.py',
]

model = dict(
    backbone=dict(
        depth=18,
        stem_channels=16,
        base_channels=16,
        plugins=[dict(cfg=dict(type='DRTAM', reduction=4), position='after_conv2')],
    ),
    head=dict(in_channels=128),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Rotate', angle=10.0, prob=0.5),
    dict(type='Shear', magnitude=0.15, prob=0.5),
    dict(type='RandomCrop', crop_size=64, padding=4),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
digits = dict(data_root='data/digits/imagenet')
train_dataloader = dict(
    batch_size=16, num_workers=0, dataset=dict(**digits, pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=0, dataset=dict(**digits, pipeline=test_pipeline))
test_dataloader = val_dataloader

max_epochs = 8
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=0.004, weight_decay=0.05))
param_scheduler = dict(
    _delete_=True,
    type='OneCycleLR',
    eta_max=0.004,
    by_epoch=True,
    total_steps=max_epochs,
    convert_to_iter_based=True,
)
train_cfg = dict(max_epochs=max_epochs, val_begin=max_epochs + 1)
auto_scale_lr = dict(base_batch_size=32)  # of two processes
