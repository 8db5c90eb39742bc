# For runs of minutes: one seed, and the metric of the untrained model beside that of the trained one.
_base_ = '../../_base_/mmpretrain_runtime.py'

custom_imports = dict(imports=['mmattn', 'mmattn.runs'], allow_failed_imports=False)
custom_hooks = [dict(type='EvaluateBeforeTraining')]
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(save_best=None))
