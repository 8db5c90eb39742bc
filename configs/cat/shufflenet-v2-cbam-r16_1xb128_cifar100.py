_base_ = './shufflenet-v2_1xb128_cifar100.py'

plugins = [dict(cfg=dict(type='CBAM', reduction=16, bias=False), position='after_right_branch')]
model = dict(backbone=dict(plugins=plugins))
