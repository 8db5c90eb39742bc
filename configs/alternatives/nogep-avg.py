# "w/o GEP" as the average alone, without the maximum.
(entry,) = _base_.model.backbone.plugins
plugins = [dict(entry, cfg=dict(entry.cfg, pools=('avg',)))]
model = dict(backbone=dict(plugins=plugins))
del entry
