# The quickstart's FCN without its gates, on scenes of smaller digits among halves of others.
_base_ = '../quickstart/fcn_r18-d8-drtam-pool_digits-voc.py'

model = dict(backbone=dict(plugins=None))

data_root = 'data/digits-study/VOCdevkit/VOC2012'
digits = dict(type='PascalVOCDataset', data_root=data_root, pipeline=_base_.train_pipeline)
train_dataloader = dict(
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
    )
)
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader

max_iters = 160
param_scheduler = dict(total_steps=max_iters)
train_cfg = dict(max_iters=max_iters, val_begin=max_iters)
auto_scale_lr = dict(base_batch_size=8)
custom_hooks = []
default_hooks = dict(checkpoint=dict(interval=80, max_keep_ckpts=1))
