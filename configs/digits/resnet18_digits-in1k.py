# The study's baseline: ResNet-18 at a quarter of its width, on few images of small digits among halves
# of others, in ImageNet's folders.
_base_ = [
    '../_base_/models/resnet50_in1k.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/drtam_resnet_in1k_100e.py',
    '../_base_/mmpretrain_runtime.py',
]

model = dict(
    backbone=dict(depth=18, stem_channels=16, base_channels=16), head=dict(in_channels=128)
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=48, padding=4),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
digits = dict(data_root='data/digits-study/imagenet')
train_dataloader = dict(
    batch_size=32, num_workers=0, dataset=dict(**digits, pipeline=train_pipeline)
)
val_dataloader = dict(batch_size=100, num_workers=0, dataset=dict(**digits, pipeline=test_pipeline))
test_dataloader = val_dataloader

max_epochs = 9
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=0.004, weight_decay=0.05))
param_scheduler = dict(
    _delete_=True,
    type='OneCycleLR',
    eta_max=0.004,
    by_epoch=True,
    total_steps=max_epochs,
    convert_to_iter_based=True,
)
train_cfg = dict(max_epochs=max_epochs, val_interval=3)
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=3, max_keep_ckpts=1, save_best=None)
)
