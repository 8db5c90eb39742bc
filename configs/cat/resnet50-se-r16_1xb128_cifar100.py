_base_ = './resnet50_1xb128_cifar100.py'

plugins = [dict(cfg=dict(type='SE', reduction=16), position='after_conv3')]
model = dict(backbone=dict(plugins=plugins))
