_base_ = './faster-rcnn_r50_fpn_4xb2-18k_voc12.py'

pools = dict(pools=('avg', 'max'), interior=False)
gate = dict(type='CAT', reduction=16, arrangement='spatial-channel', **pools)
model = dict(backbone=dict(plugins=[dict(cfg=gate, position='after_conv3')]))
