import copy
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.registry import register_gate

from .checks import check_int

# By their names for `create_attn`, in timm's order; of an older timm, those that it has.
NAMES = (
    'se',
    'ese',
    'eca',
    'ecam',
    'ceca',
    'ge',
    'gc',
    'gca',
    'cbam',
    'lcbam',
    'coord',
    'scoord',
    'ela',
    'strip',
    'sk',
    'splat',
    'lambda',
    'nl',
)
UNFIT = {
    'bottleneck': 'its position embedding is for maps of one size',
    'halo': 'it takes only maps whose sides are multiples of its block of 8',
    'bat': 'it takes only maps whose sides are multiples of its block of 7',
}


@register_gate
class TimmAttention(nn.Module):
    """An attention layer of timm (pytorch-image-models), as `timm.layers.create_attn` makes it.

    (N, C, H, W) -> (N, C, H, W). Layers start as timm starts them.

    Args:
        in_channels (int): C.
        name (str): One of `NAMES`, such as 'gca' (global context, added) or 'nl' (non-local).
        kwargs: The layer's own, such as `rd_ratio=1 / 8`.

    Raises:
        ImportError: without timm.
        ValueError: in one line, for another name, with the reason if timm has it, for what the
            layer itself refuses, and for arguments with which it changes a map's shape.
    """

    _abbr_ = 'timm'

    def __init__(self, in_channels: int, name: str = 'gca', **kwargs: Any) -> None:
        super().__init__()
        check_int('in_channels', in_channels, 1)
        if name not in NAMES:
            reason = f': {UNFIT[name]}' if name in UNFIT else ''
            raise ValueError(f'name must be one of {", ".join(NAMES)}, got {name!r}{reason}')
        try:
            from timm.layers import create_attn
        except ImportError as error:
            raise ImportError('TimmAttention needs timm: pip install timm') from error
        self.in_channels, self.name = in_channels, name
        try:
            self.attn = create_attn(name, in_channels, **kwargs)
        except Exception as error:  # whatever a layer makes of its arguments
            raise _refused(name, in_channels, error) from error
        self._check_shape()

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x)

    def extra_repr(self) -> str:
        return f'in_channels={self.in_channels}, name={self.name!r}'

    def _check_shape(self) -> None:
        """On the meta device: with some arguments (a stride, widths) it is no gate."""
        trial = copy.deepcopy(self.attn).to('meta').eval()
        shape = (2, self.in_channels, 9, 13)
        try:
            with torch.no_grad():
                found = trial(torch.empty(shape, device='meta')).shape
        except Exception as error:
            raise _refused(self.name, self.in_channels, error) from error
        if found != shape:
            raise ValueError(
                f"timm's {self.name} with these arguments makes {tuple(found)} of {shape}; "
                'allowed: what keeps the shape'
            )


def _refused(name: str, channels: int, error: Exception) -> ValueError:
    reason = str(error) or 'no reason given'
    return ValueError(f"timm's {name} refuses {channels} channels, or its arguments: {reason}")
