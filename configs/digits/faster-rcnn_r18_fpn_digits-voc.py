# The quickstart's Faster R-CNN without its gate, on scenes of smaller digits among halves of others.
_base_ = '../quickstart/faster-rcnn_r18-cat_fpn_digits-voc.py'

model = dict(backbone=dict(plugins=None))

data_root = 'data/digits-study/VOCdevkit/'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(batch_size=8, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader

max_epochs = 3
param_scheduler = dict(total_steps=max_epochs)
train_cfg = dict(max_epochs=max_epochs, val_begin=max_epochs)
auto_scale_lr = dict(base_batch_size=8)
custom_hooks = []
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
