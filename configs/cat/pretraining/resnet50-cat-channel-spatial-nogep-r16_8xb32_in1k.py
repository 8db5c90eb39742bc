# Not in the paper: an ImageNet network for the gates of Table 6's row to start from.
_base_ = '../resnet50_8xb32_in1k.py'

pools = dict(pools=('avg', 'max'), interior=False)
gate = dict(type='CAT', reduction=16, arrangement='channel-spatial', **pools)
model = dict(backbone=dict(plugins=[dict(cfg=gate, position='after_conv3')]))
