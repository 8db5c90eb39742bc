# 3x3 stride-1 stem and no max pool, as the networks of the public pytorch-cifar100 collection, whose
# parameter counts the paper prints. As there, all layers start as PyTorch draws them: no Kaiming,
# no zero in the last norm of a block, nor the toolbox's N(0, 0.01) in the head.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='PluginResNet_CIFAR',
        depth=50,
        num_stages=4,
        out_indices=(3,),
        style='pytorch',
        init_cfg=None,
        zero_init_residual=False,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=2048,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
        init_cfg=None,
    ),
)
