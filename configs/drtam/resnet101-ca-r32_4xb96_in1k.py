_base_ = './resnet101_4xb96_in1k.py'

plugins = [dict(cfg=dict(type='CoordAttention', reduction=32), position='after_conv3')]
model = dict(backbone=dict(plugins=plugins))
