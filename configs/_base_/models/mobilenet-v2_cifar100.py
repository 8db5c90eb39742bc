# 1x1 stride-1 stem and strides (1, 2, 2, 2, 1, 1, 1), convolutions with bias, as in
# the public pytorch-cifar100 collection, whose parameter count the paper prints. As there, all layers
# start as PyTorch draws them, the head's too.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='PluginMobileNetV2_CIFAR'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=1280,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
        init_cfg=None,
    ),
)
