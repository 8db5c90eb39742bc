_base_ = './mobilenet-v2_4xb64_in1k.py'

plugins = [
    dict(cfg=dict(type='DRTAM', reduction=16, num_channel_chunks=4), position='after_depthwise'),
]
model = dict(backbone=dict(plugins=plugins))
