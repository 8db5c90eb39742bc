_base_ = './fcn_r101-d8_4xb4-20k_voc12aug-512x512.py'

gate = dict(type='DRTAM', reduction=16)
plugins = [dict(cfg=gate, position='after_stem'), dict(cfg=gate, position='after_stage')]
model = dict(backbone=dict(plugins=plugins))
