_base_ = './faster-rcnn_r50_fpn_4xb2-18k_voc0712.py'

plugins = [dict(cfg=dict(type='CBAM', reduction=16, bias=False), position='after_conv3')]
model = dict(backbone=dict(plugins=plugins))
