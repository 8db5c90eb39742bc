_base_ = './resnet101_8xb32_in1k.py'

plugins = [dict(cfg=dict(type='CAT', reduction=16), position='after_conv3')]
model = dict(backbone=dict(plugins=plugins))
