# Not in the paper: an ImageNet network for the gates of Table 7's "Pool." to start from.
_base_ = '../resnet50_4xb128_in1k.py'

gate = dict(type='CBAM', reduction=16)
plugins = [dict(cfg=gate, position='after_stem'), dict(cfg=gate, position='after_stage')]
model = dict(backbone=dict(plugins=plugins))
