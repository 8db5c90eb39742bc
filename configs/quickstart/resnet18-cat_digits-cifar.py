# CAT's CIFAR network, with basic blocks and a quarter of the width, on digits in CIFAR-100's format.
_base_ = [
    '../_base_/models/resnet50_cifar100.py',
    '../_base_/datasets/cifar100.py',
    '../_base_/schedules/cat_cifar100_200e.py',
    './_base_/mmpretrain_short.py',
]

model = dict(
    backbone=dict(
        depth=18,
        stem_channels=16,
        base_channels=16,
        plugins=[dict(cfg=dict(type='CAT', reduction=4), position='after_conv2')],
    ),
    head=dict(in_channels=128),
)

# digits, unlike CIFAR's objects, are not the same when flipped
train_pipeline = [dict(type='RandomCrop', crop_size=32, padding=2), dict(type='PackInputs')]
digits = dict(type='DigitsCIFAR100', data_root='data/digits/cifar100')
train_dataloader = dict(
    batch_size=32, num_workers=0, dataset=dict(**digits, pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=0, dataset=digits)
test_dataloader = val_dataloader

max_epochs = 6
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
auto_scale_lr = dict(base_batch_size=64)  # of two processes
