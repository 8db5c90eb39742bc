# CAT's spatial convolution takes its three maps side by side (Fig. 3 b), not their sum (eq. 7).
(entry,) = _base_.model.backbone.plugins
plugins = [dict(entry, cfg=dict(entry.cfg, spatial_fusion='concat'))]
model = dict(backbone=dict(plugins=plugins))
del entry
