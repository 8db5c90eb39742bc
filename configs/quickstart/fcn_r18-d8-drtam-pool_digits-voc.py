# DRTAM's FCN, gates after the stages, on digits in VOC's format: a quarter of ResNet-18's width for
# scenes of 96 pixels, trained from scratch.
_base_ = [
    '../_base_/models/fcn_r50-d8.py',
    '../_base_/datasets/voc12aug_512x512.py',
    '../_base_/schedules/drtam_seg_20k.py',
    './_base_/mmseg_short.py',
]

crop_size = (96, 96)
# Nine pixels in ten are background.
class_weight = [0.2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]  # fmt: skip
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        depth=18,
        stem_channels=16,
        base_channels=16,
        init_cfg=None,
        plugins=[dict(cfg=dict(type='DRTAM', reduction=4), position='after_stage')],
    ),
    decode_head=dict(
        in_channels=128,
        channels=64,
        dropout_ratio=0.0,
        loss_decode=dict(
            class_weight=[
                0.2,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
            ]  # fmt: skip
        ),
    ),
    auxiliary_head=dict(in_channels=64, channels=32, dropout_ratio=0.0),
)

data_root = 'data/digits/VOCdevkit/VOC2012'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
loader = dict(num_workers=0, persistent_workers=False)
digits = dict(type='PascalVOCDataset', data_root=data_root, pipeline=train_pipeline)
train_dataloader = dict(
    **loader,
    batch_size=8,
    dataset=dict(
        datasets=[
            dict(
                **digits,
                data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
                ann_file='ImageSets/Segmentation/train.txt',
            ),
            dict(
                **digits,
                data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassAug'),
                ann_file='ImageSets/Segmentation/aug.txt',
            ),
        ]
    ),
)
val_dataloader = dict(**loader, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader

max_iters = 240
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=0.005, weight_decay=0.05))
param_scheduler = dict(
    _delete_=True, type='OneCycleLR', eta_max=0.005, by_epoch=False, total_steps=max_iters
)
train_cfg = dict(max_iters=max_iters, val_begin=max_iters + 1)
default_hooks = dict(checkpoint=dict(interval=100))
