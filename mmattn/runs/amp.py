from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from mmattn.registry import register


@register(OPTIM_WRAPPERS)
class CPUAmpOptimWrapper(OptimWrapper):
    """Mixed precision on a CPU: the backbone is autocast to bfloat16, whose range needs no scaling.

    mmengine's AmpOptimWrapper refuses to work without a GPU. Necks and heads stay in float32, as
    mmcv's operators for CPUs (NMS, RoIAlign) know no bfloat16. Arguments are those of OptimWrapper.
    """

    training = False  # validation is in full precision
    model = None

    @contextmanager
    def optim_context(self, model):
        if self.model is not model:  # every iteration comes here, with the same one
            self.model = model
            for name, module in model.named_modules():
                if name.split('.')[-1] == 'backbone':
                    module.forward = self._autocast(module.forward)
        self.training = True
        try:
            with super().optim_context(model):
                yield
        finally:
            self.training = False

    def _autocast(self, forward):
        def run(*args, **kwargs):
            with torch.autocast('cpu', torch.bfloat16, enabled=self.training):
                return tuple(feature.float() for feature in forward(*args, **kwargs))

        return run
