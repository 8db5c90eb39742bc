_base_ = './faster-rcnn_r50_fpn_4xb2-18k_voc12.py'

plugins = [
    dict(
        cfg=dict(
            type='CAT', reduction=16, arrangement='spatial', pools=('avg', 'max'), interior=False
        ),
        position='after_conv3',
    ),
]
model = dict(backbone=dict(plugins=plugins))
