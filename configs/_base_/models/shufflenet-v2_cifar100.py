# 3x3 stride-1 stem and no max pool, as in the public pytorch-cifar100 collection. As there, all layers
# start as PyTorch draws them, the head's too.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='PluginShuffleNetV2_CIFAR', widen_factor=1.0),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=1024,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
        init_cfg=None,
    ),
)
