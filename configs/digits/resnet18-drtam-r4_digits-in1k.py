_base_ = './resnet18_digits-in1k.py'

plugins = [dict(cfg=dict(type='DRTAM', reduction=4), position='after_conv2')]
model = dict(backbone=dict(plugins=plugins))
