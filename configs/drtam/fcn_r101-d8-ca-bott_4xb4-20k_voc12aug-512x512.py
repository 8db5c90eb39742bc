_base_ = './fcn_r101-d8_4xb4-20k_voc12aug-512x512.py'

plugins = [dict(cfg=dict(type='CoordAttention', reduction=32), position='after_conv3')]
model = dict(backbone=dict(plugins=plugins))
