# The same, and the gates start as the identity.
_base_ = './faster-rcnn_r18-drtam-r4-fresh_fpn_digits-voc.py'

model = dict(backbone=dict(plugin_defaults=dict(start='identity')))
