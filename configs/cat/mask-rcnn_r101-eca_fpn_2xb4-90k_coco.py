_base_ = './mask-rcnn_r101_fpn_2xb4-90k_coco.py'

plugins = [dict(cfg=dict(type='ECA'), position='after_conv3')]
model = dict(backbone=dict(plugins=plugins))
