from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from mmattn.registry import register


@register(OPTIM_WRAPPERS)
class CPUAmpOptimWrapper(OptimWrapper):
    """Mixed precision on a CPU: the backbone is autocast to bfloat16, whose range needs no scaling.

    mmengine's AmpOptimWrapper refuses to work without a GPU. Necks and heads stay in float32, as
    mmcv's operators for CPUs (NMS, RoIAlign) know no bfloat16. Arguments are those of OptimWrapper.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in model.named_modules():
                if name.split('.')[-1] == 'backbone':
                    stack.enter_context(_autocast(module))
            stack.enter_context(super().optim_context(model))
            yield


@contextmanager
def _autocast(backbone: nn.Module) -> Iterator[None]:
    """A backbone computes in bfloat16 and gives float32.

    Only inside the context: a function that stays on a module would run the original's weights in
    a copy of it (an average of the weights), and keep the module from being pickled.
    """
    forward, own = backbone.forward, backbone.__dict__.get('forward')

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast('cpu', torch.bfloat16):
            return _full(forward(*args, **kwargs))

    backbone.forward = run
    try:
        yield
    finally:
        if own is None:
            del backbone.forward
        else:
            backbone.forward = own


def _full(features: Any) -> Any:
    """What a backbone gives (a tensor, or several in a tuple, list or dict) in float32."""
    if isinstance(features, torch.Tensor):
        return features.float() if features.is_floating_point() else features
    if isinstance(features, dict):
        return {key: _full(value) for key, value in features.items()}
    if isinstance(features, (tuple, list)):
        kind = list if isinstance(features, list) else tuple
        return kind(map(_full, features))
    return features
