# CAT, section 4.1: 18k iterations of 8 images, SGD 0.02, divided by 10 after 12k and 16k. The paper
# gives this rate for Faster R-CNN (the RetinaNet rows have their own) and no warm-up; the warm-up
# is Detectron2's for Pascal VOC.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=18000, val_interval=2000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
    dict(
        type='MultiStepLR', by_epoch=False, begin=0, end=18000, milestones=[12000, 16000], gamma=0.1
    ),
]
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001)
)

auto_scale_lr = dict(enable=False, base_batch_size=8)
