# Gates in the frozen first stage of a detector learn: weights and norms.
model = dict(backbone=dict(plugin_defaults=dict(freeze=False)))
