# DRTAM, section 4.5: MMSegmentation under default settings. Its 20k-iteration, batch-16 models of
# VOC12aug (mIoU 67.08 and 71.16) are the ones the paper's baselines (67.68, 71.21) match.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=20000, val_interval=2000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=20000, by_epoch=False),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005),
    clip_grad=None,
)

auto_scale_lr = dict(enable=False, base_batch_size=16)
