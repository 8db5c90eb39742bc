"""The gates as the layers of their public code, for one image: what a counter of modules saw.

Here a gate is a few operators; there it was modules and functions, and a function was not seen:
CBAM's release pools by functions, SE's, ECA-Net's, Coordinate Attention's and DRTAM's by modules.
Each function takes the gate, for its widths and kernels, and its input's C, H, W.
"""

from typing import Any

from torch import nn

from mmattn.attention import CAT, CBAM, DRTAM, ECA, EMA, SE, CoordAttention, SimAM, TripletAttention
from mmattn.ops.chunks import windows

from .counters import Layer

AVG, MAX = 'AdaptiveAvgPool2d', 'AdaptiveMaxPool2d'


def pool(kind: str, inputs: int, outputs: int) -> Layer:
    return Layer(kind, inputs, outputs)


def norm(elements: int, channels: int) -> Layer:
    return Layer('BatchNorm2d', elements, elements, params=2 * channels)


def relu(elements: int, kind: str = 'ReLU') -> Layer:
    return Layer(kind, elements, elements)


def conv(
    kind: str, channels: int, outs: int, taps: int, places: int, bias: bool = False, runs: int = 1
) -> Layer:
    """A convolution of so many taps, at so many places of its output, run so many times."""
    outputs = outs * places * runs
    return Layer(
        kind,
        outputs=outputs,
        products=outputs * channels * taps,
        biases=outputs if bias else 0,
        params=outs * (channels * taps + bool(bias)),
    )


def mlp(layers: nn.Module, runs: int) -> list[Layer]:
    """Two linear layers and the ReLU between them, run so many times."""
    inner: Any = layers
    first, _, second = inner
    hidden = first.out_features
    bias = first.bias is not None
    return [
        conv('Linear', first.in_features, hidden, 1, 1, bias, runs),
        relu(hidden * runs),
        conv('Linear', hidden, second.out_features, 1, 1, bias, runs),
    ]


def se(gate: SE, c: int, h: int, w: int) -> list[Layer]:
    return [pool(AVG, c * h * w, c), *mlp(gate.mlp, 1)]


def eca(gate: ECA, c: int, h: int, w: int) -> list[Layer]:
    return [pool(AVG, c * h * w, c), conv('Conv1d', 1, 1, gate.conv.kernel_size[0], c)]


def cbam(gate: CBAM, c: int, h: int, w: int, pool_modules: bool = False) -> list[Layer]:
    """`pool_modules`: the channel's two pools are modules, as in later re-implementations."""
    layers = [pool(kind, c * h * w, c) for kind in (AVG, MAX) if pool_modules]
    taps = gate.conv.kernel_size[0] ** 2
    layers += [*mlp(gate.mlp, 2), conv('Conv2d', 2, 1, taps, h * w)]
    return layers if isinstance(gate.norm, nn.Identity) else [*layers, norm(h * w, 1)]


def coord(gate: CoordAttention, c: int, h: int, w: int) -> list[Layer]:
    hidden = gate.conv.out_channels
    return [
        pool(AVG, c * h * w, c * h),
        pool(AVG, c * h * w, c * w),
        conv('Conv2d', c, hidden, 1, h + w, bias=True),
        norm(hidden * (h + w), hidden),
        relu(hidden * (h + w), 'ReLU6'),  # of the hard swish
        conv('Conv2d', hidden, c, 1, h, bias=True),
        conv('Conv2d', hidden, c, 1, w, bias=True),
    ]


def cat(gate: CAT, c: int, h: int, w: int, maps: int | None = None) -> list[Layer]:
    """No code is public. `maps`: how many the spatial convolution takes, 1 where they are summed
    (eq. 7), 3 where they are concatenated; None as the gate. Entropies and Gaussian filters are
    functions."""
    maps, taps = maps or gate.conv.in_channels, gate.conv.kernel_size[0] ** 2
    factors = sum(p.numel() for name, p in gate.named_parameters() if '.' not in name)
    return [
        pool(AVG, c * h * w, c),
        pool(MAX, c * h * w, c),
        *mlp(gate.mlp, 3),
        conv('Conv2d', maps, 1, taps, h * w),
        Layer('Parameter', params=factors),
    ]


def drtam(gate: DRTAM, c: int, h: int, w: int) -> list[Layer]:
    s, n = gate.initial.chunks
    runs = 1 if gate.complement is None else 2
    planes = [(AVG, c * h), (AVG, c * w), ('AdaptiveAvgPool3d', h * w)]
    layers = [pool(kind, c * h * w, outputs) for kind, outputs in planes]
    for _ in range(runs):
        for length in (h, w):  # eq. 3, 4
            for a, b in windows(length, s):
                layers += [pool(kind, (b - a) * c, c) for kind in (AVG, MAX)]
        layers += [conv('Conv1d', 4 * s, 1, 1, c), norm(c, 1)]
        for length, across in ((h, w), (w, h)):  # eq. 7 to 11
            pieces = [*windows(across, s), *windows(c, n)]
            layers += [pool(AVG, (b - a) * length, length) for a, b in pieces]
            layers += [pool(MAX, c * length, length)]
            layers += [conv('Conv1d', s + n + 1, 1, 3, length), norm(length, 1)]
    return layers + mlp(gate.mlp, runs)


def simam(gate: SimAM, c: int, h: int, w: int) -> list[Layer]:
    """Functions only."""
    return []


def triplet(gate: TripletAttention, c: int, h: int, w: int) -> list[Layer]:
    places = [c * w, h * c, h * w][: 2 if gate.height_width is None else 3]
    taps = gate.channel_width.conv.kernel_size[0] ** 2
    return [x for n in places for x in (conv('Conv2d', 2, 1, taps, n), norm(n, 1))]


def ema(gate: EMA, c: int, h: int, w: int) -> list[Layer]:
    """No counter knew its group norm."""
    width = c // gate.groups
    return [
        pool(AVG, c * h * w, c * h),
        pool(AVG, c * h * w, c * w),
        conv('Conv2d', width, width, 1, h + w, bias=True, runs=gate.groups),
        Layer('GroupNorm', params=2 * width),
        conv('Conv2d', width, width, 9, h * w, bias=True, runs=gate.groups),
        *[pool(AVG, c * h * w, c)] * 2,
    ]


GATES = {
    'SE': se,
    'ECA': eca,
    'CBAM': cbam,
    'CoordAttention': coord,
    'CAT': cat,
    'DRTAM': drtam,
    'SimAM': simam,
    'TripletAttention': triplet,
    'EMA': ema,
}
