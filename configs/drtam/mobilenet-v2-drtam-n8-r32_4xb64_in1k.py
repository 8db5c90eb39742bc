_base_ = './mobilenet-v2_4xb64_in1k.py'

plugins = [
    dict(cfg=dict(type='DRTAM', reduction=32, num_channel_chunks=8), position='after_depthwise'),
]
model = dict(backbone=dict(plugins=plugins))
