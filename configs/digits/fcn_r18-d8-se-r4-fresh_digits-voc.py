# The gates are fresh on the weights of the network without them.
_base_ = './fcn_r18-d8-se-r4_digits-voc.py'

default_hooks = dict(pretrained=dict(type='PretrainedHook', fresh_gates=True))
