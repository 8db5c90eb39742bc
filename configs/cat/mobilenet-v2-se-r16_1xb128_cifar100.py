_base_ = './mobilenet-v2_1xb128_cifar100.py'

plugins = [dict(cfg=dict(type='SE', reduction=16), position='after_project')]
model = dict(backbone=dict(plugins=plugins))
