_base_ = './faster-rcnn_r18_fpn_digits-voc.py'

plugins = [dict(cfg=dict(type='SE', reduction=4), position='after_conv2')]
model = dict(backbone=dict(plugins=plugins))
