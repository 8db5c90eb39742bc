# The last norm of a residual block starts at one.
model = dict(backbone=dict(zero_init_residual=False))
