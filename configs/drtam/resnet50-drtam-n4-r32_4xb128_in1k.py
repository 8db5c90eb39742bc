_base_ = './resnet50_4xb128_in1k.py'

plugins = [
    dict(cfg=dict(type='DRTAM', reduction=32, num_channel_chunks=4), position='after_conv3'),
]
model = dict(backbone=dict(plugins=plugins))
