_base_ = './resnet50_cifar100.py'

model = dict(backbone=dict(depth=101))
