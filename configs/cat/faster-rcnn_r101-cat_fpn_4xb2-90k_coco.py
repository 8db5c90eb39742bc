_base_ = './faster-rcnn_r101_fpn_4xb2-90k_coco.py'

plugins = [dict(cfg=dict(type='CAT', reduction=16), position='after_conv3')]
model = dict(backbone=dict(plugins=plugins))
