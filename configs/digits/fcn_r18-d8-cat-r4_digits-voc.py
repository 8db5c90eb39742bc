_base_ = './fcn_r18-d8_digits-voc.py'

plugins = [dict(cfg=dict(type='CAT', reduction=4), position='after_conv2')]
model = dict(backbone=dict(plugins=plugins))
