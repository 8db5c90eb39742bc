_base_ = './mobilenet-v2_in1k.py'

# "MobileNetV2-0.5" in DRTAM's section 4.1 is the 0.75 of its Table 4, whose parameters it has.
# The last convolution keeps its 1280 channels, as in the MobileNetV2 paper.
model = dict(backbone=dict(widen_factor=0.75))
