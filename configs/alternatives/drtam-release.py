# DRTAM's gates as in the authors' release of 2024: r = 16, a hidden width of C // r, maxima in the
# plane of height and width too, and one of each chunk of channels.
release = dict(reduction=16, min_hidden=1, plane_max=True, chunk_max=True)
plugins = [
    {**plugin, 'cfg': {**plugin['cfg'], **release}} for plugin in _base_.model.backbone.plugins
]
model = dict(backbone=dict(plugins=plugins))
del release
