_base_ = './resnet101_8xb32_in1k.py'

# The row is printed in CBAM's own paper, and the code released with that starts the norm at zero.
cbam = dict(type='CBAM', reduction=16, bias=False, norm_weight=0)
plugins = [dict(cfg=cbam, position='after_conv3')]
model = dict(backbone=dict(plugins=plugins))
