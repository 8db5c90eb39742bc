_base_ = './mask-rcnn_r101_fpn_4xb4-1x_coco.py'

plugins = [dict(cfg=dict(type='DRTAM', reduction=16), position='after_conv3')]
model = dict(backbone=dict(plugins=plugins))
