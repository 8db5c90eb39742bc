# The backbone, gates and all, starts from a checkpoint of the ImageNet network that a row names in
# paper_tables.yml (`pretrained`), not of torchvision's: tools/train.py ROW --pretrained CHECKPOINT.
custom_imports = dict(imports=['mmattn', 'mmattn.runs'], allow_failed_imports=False)
default_hooks = dict(pretrained=dict(type='PretrainedHook'))
model = dict(backbone=dict(init_cfg=None))
