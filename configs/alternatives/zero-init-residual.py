# The last norm of a residual block starts at zero.
model = dict(backbone=dict(zero_init_residual=True))
