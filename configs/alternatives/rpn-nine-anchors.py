# Nine anchors a position in the region proposal network, where MMDetection's default has three.
model = dict(rpn_head=dict(anchor_generator=dict(scales=[4, 8, 16])))
