# Two images on each of the two GPUs, as the detection rows have on each of their four.
train_dataloader = dict(batch_size=2)
auto_scale_lr = dict(base_batch_size=4)
