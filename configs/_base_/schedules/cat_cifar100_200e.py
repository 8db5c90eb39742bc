# CAT, section 4.2: 200 epochs, batch 128, SGD 0.001 (so the text), divided by 10 every 50 epochs. The
# first epoch warms up, from nearly nothing to the rate, as in the pytorch-cifar100 collection whose
# networks, batch, decay and number of epochs these are; the paper is silent on it.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.001, momentum=0.9, weight_decay=0.0005))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='MultiStepLR', by_epoch=True, milestones=[50, 100, 150], gamma=0.1),
]

train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=1)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=128)
