# The gates' norms are the segmentor's SyncBN.
model = dict(backbone=dict(plugin_defaults=dict(norm_cfg='host')))
