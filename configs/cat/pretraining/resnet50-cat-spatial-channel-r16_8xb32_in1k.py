# Not in the paper: an ImageNet network for the gates of Table 6's row to start from.
_base_ = '../resnet50_8xb32_in1k.py'

plugins = [
    dict(
        cfg=dict(type='CAT', reduction=16, arrangement='spatial-channel', interior=False),
        position='after_conv3',
    ),
]
model = dict(backbone=dict(plugins=plugins))
