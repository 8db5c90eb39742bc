# Detectron2's 0.01 at batch 16, scaled to the paper's batch of 8.
optim_wrapper = dict(optimizer=dict(lr=0.005))
