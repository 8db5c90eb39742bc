# The gates are fresh on the weights of the network without them.
_base_ = './faster-rcnn_r18-drtam-r4_fpn_digits-voc.py'

default_hooks = dict(pretrained=dict(type='PretrainedHook', fresh_gates=True))
