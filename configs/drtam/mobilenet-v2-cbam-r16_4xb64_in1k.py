_base_ = './mobilenet-v2_4xb64_in1k.py'

plugins = [dict(cfg=dict(type='CBAM', reduction=16), position='after_depthwise')]
model = dict(backbone=dict(plugins=plugins))
