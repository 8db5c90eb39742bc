# The last norm of a block starts at zero: so has MMClassification, on which DRTAM's rows ran, and its
# bare networks (76.43, 77.86) are those of the toolbox (76.55, 77.97) rather than ones without it
# (76.13, 77.37 of torchvision). CAT's rows say otherwise.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='PluginResNet',
        depth=50,
        num_stages=4,
        out_indices=(3,),
        style='pytorch',
        zero_init_residual=True,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=2048,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
