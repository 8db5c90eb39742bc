# Detectron2's RetinaNet where MMDetection's differs: a ReLU before P7, the neck's initial weights,
# losses divided by a moving average of the number of positive anchors, a smooth L1 loss of boxes.
model = dict(
    neck=dict(relu_before_extra_convs=True, init_cfg=dict(type='Caffe2Xavier', layer='Conv2d')),
    bbox_head=dict(type='EMARetinaHead', loss_bbox=dict(type='SmoothL1Loss', beta=0.1)),
)
