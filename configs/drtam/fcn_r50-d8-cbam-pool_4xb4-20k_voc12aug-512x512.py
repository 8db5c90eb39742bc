_base_ = './fcn_r50-d8_4xb4-20k_voc12aug-512x512.py'

gate = dict(type='CBAM', reduction=16)
plugins = [dict(cfg=gate, position='after_stem'), dict(cfg=gate, position='after_stage')]
model = dict(backbone=dict(plugins=plugins))
