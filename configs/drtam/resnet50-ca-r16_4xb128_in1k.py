_base_ = './resnet50_4xb128_in1k.py'

plugins = [dict(cfg=dict(type='CoordAttention', reduction=16), position='after_conv3')]
model = dict(backbone=dict(plugins=plugins))
