# 3x3 stride-1 stem and no max pool, as the networks of the public
# pytorch-cifar100 collection, whose parameter counts the paper prints.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='PluginResNet_CIFAR', depth=50, num_stages=4, out_indices=(3,), style='pytorch'
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=2048,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
