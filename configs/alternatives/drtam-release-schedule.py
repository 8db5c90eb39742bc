# The rate and batch of the authors' release of 2024: 0.1 and 256, four GPUs of 64 images.
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=0.1))
auto_scale_lr = dict(base_batch_size=256)
