_base_ = './retinanet_r101_fpn_4xb2-18k_voc0712.py'

plugins = [dict(cfg=dict(type='CAT', reduction=16), position='after_conv3')]
model = dict(backbone=dict(plugins=plugins))
