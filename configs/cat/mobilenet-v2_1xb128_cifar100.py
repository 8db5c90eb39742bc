_base_ = [
    '../_base_/models/mobilenet-v2_cifar100.py',
    '../_base_/datasets/cifar100.py',
    '../_base_/schedules/cat_cifar100_200e.py',
    '../_base_/mmpretrain_runtime.py',
]
