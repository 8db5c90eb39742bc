# CAT, section 4.1: 90k iterations of 8 images, divided by 10 after 70k and 80k, otherwise as for
# Pascal VOC. The warm-up is Detectron2's for COCO.
_base_ = './cat_det_18k.py'

train_cfg = dict(max_iters=90000, val_interval=10000)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(
        type='MultiStepLR', by_epoch=False, begin=0, end=90000, milestones=[70000, 80000], gamma=0.1
    ),
]
