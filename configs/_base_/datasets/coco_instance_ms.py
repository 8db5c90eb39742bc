# Sizes are Detectron2's for COCO: a short side drawn from 640...800, 800 to test. So are the masks
# to train on: polygons, which are cut and scaled to a region before they become pixels. CAT's Table
# 5 does not say which AP it prints; the values are those of masks. Boxes are scored as well.
_base_ = './coco_instance.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False),
    dict(
        type='RandomChoiceResize',
        scales=[(1333, 640), (1333, 672), (1333, 704), (1333, 736), (1333, 768), (1333, 800)],
        keep_ratio=True,
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
