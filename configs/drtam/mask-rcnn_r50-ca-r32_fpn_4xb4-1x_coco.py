_base_ = './mask-rcnn_r50_fpn_4xb4-1x_coco.py'

plugins = [dict(cfg=dict(type='CoordAttention', reduction=32), position='after_conv3')]
model = dict(backbone=dict(plugins=plugins))
