# The same, and the gates start as the identity.
_base_ = './fcn_r18-d8-drtam-r4-fresh_digits-voc.py'

model = dict(backbone=dict(plugin_defaults=dict(start='identity')))
