_base_ = './fcn_r50-d8_4xb4-20k_voc12aug-512x512.py'

plugins = [dict(cfg=dict(type='DRTAM', reduction=32), position='after_stage')]
model = dict(backbone=dict(plugins=plugins))
