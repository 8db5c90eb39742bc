# The one rate that the paper prints, in a sentence about Faster R-CNN.
optim_wrapper = dict(optimizer=dict(lr=0.02))
