"""How the papers' authors counted parameters and FLOPs, as data.

A counter of the time saw the modules that ran, never functions, and charged each by its class. So
a table's numbers follow from three things: the counter (`Counter`), which layers the public code
of a gate had as modules (`mmattn.analysis.public_gates`), and what of the model was counted, in
which units (`Convention`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

CONVOLUTIONS = ('Conv1d', 'Conv2d', 'ConvTranspose2d')
NORMS = ('BatchNorm1d', 'BatchNorm2d')
RELUS = ('ReLU', 'ReLU6')
ADAPTIVE_POOLS = ('AdaptiveAvgPool2d', 'AdaptiveAvgPool3d', 'AdaptiveMaxPool2d')
# SyncBatchNorm is its own kind, and no counter here knew it: the FCNs, which have it, are counted
# without normalisation.
KINDS = (*CONVOLUTIONS, 'Linear', *NORMS, 'SyncBatchNorm', *RELUS, 'MaxPool2d', *ADAPTIVE_POOLS)


@dataclass(frozen=True)
class Layer:
    """One module as a counter meets it, for one image.

    Args:
        kind (str): The name of PyTorch's class.
        inputs (int): Elements that go in, over all calls.
        outputs (int): Elements that come out.
        products (int): Multiply-accumulates; of a max pool its outputs times its kernel_size as the
            module has it, 3 for 3x3.
        biases (int): Outputs to which a bias is added.
        params (int): Parameters.
    """

    kind: str
    inputs: int = 0
    outputs: int = 0
    products: int = 0
    biases: int = 0
    params: int = 0


def layer_of(module: nn.Module, x: Tensor, y: Tensor) -> Layer | None:
    """A module's call with input x and output y; None for a class that no counter knew."""
    kinds = [kind for kind in KINDS if isinstance(module, getattr(nn, kind))]
    if not kinds:
        return None
    products = biases = 0
    if kinds[0] in (*CONVOLUTIONS, 'Linear'):
        transposed = kinds[0] == 'ConvTranspose2d'
        weight: Any = module.weight
        products = (x if transposed else y).numel() * weight[0].numel()
        biases = 0 if module.bias is None else y.numel()
    elif kinds[0] == 'MaxPool2d':
        size: Any = module.kernel_size  # of a side; the tools of the time wanted a number
        products = y.numel() * size
    params = sum(p.numel() for p in module.parameters())
    return Layer(kinds[0], x.numel(), y.numel(), products, biases, params)


@dataclass(frozen=True, eq=False)
class Counter:
    """What a tool charges.

    Args:
        name (str): The tool.
        costs (dict): Classes of layers -> how often each of `Layer`'s fields is charged. A class
            that is absent costs nothing.
        trainable (bool): Whether only parameters that train are counted.
    """

    name: str
    costs: dict[tuple[str, ...], dict[str, int]]
    trainable: bool

    def flops(self, layer: Layer) -> int:
        for kinds, terms in self.costs.items():
            if layer.kind in kinds:
                return sum(times * getattr(layer, term) for term, times in terms.items())
        return 0


# `get_model_complexity_info` of mmcv, behind the get_flops.py of each toolbox.
MMCV = Counter(
    'mmcv',
    {
        CONVOLUTIONS: {'products': 1, 'biases': 1},
        ('Linear',): {'products': 1},
        NORMS: {'inputs': 2},
        RELUS: {'inputs': 1},
        ('MaxPool2d', *ADAPTIVE_POOLS): {'inputs': 1},
    },
    trainable=True,
)
# Its source; the name of its unit, GMac, stands above the column of CAT's Table 3.
PTFLOPS = Counter(
    'ptflops',
    {**MMCV.costs, ('Linear',): {'products': 1, 'biases': 1}},
    trainable=True,
)
# As ECA-Net's table has it, whose numbers CAT's Table 4 repeats; the terms are inferred. No commit
# of thop has all four: those that charge four a norm and one a ReLU (March to August 2019) charge a
# linear layer twice, and of a module that runs several times the last call only, which gives seven
# of the eight cells (CBAM on ResNet-50 comes to 3.864).
THOP = Counter(
    'thop',
    {
        CONVOLUTIONS: {'products': 1},
        ('Linear',): {'products': 1},
        NORMS: {'inputs': 4},
        RELUS: {'inputs': 1},
        ADAPTIVE_POOLS: {'inputs': 1, 'outputs': 1},
        ('MaxPool2d',): {'products': 1},
    },
    trainable=False,
)
COUNTERS = (MMCV, PTFLOPS, THOP)

# What was a function, or a module made while running, in the public code of a network: patterns of
# '<name>#<number of the call>'. That of the CIFAR networks is pytorch-cifar100, whose ResNet makes
# the ReLU behind each sum anew, and whose two others pool by a function.
UNSEEN = {
    'PluginResNet_CIFAR': r'layer\d\.\d+\.relu#3$',
    'PluginMobileNetV2_CIFAR': r'neck\.gap#1$',
    'PluginShuffleNetV2_CIFAR': r'neck\.gap#1$',
}


def is_seen(backbone: str, call: str) -> bool:
    """Whether a counter saw a call, '<name>#<number>', in the public code of a backbone class."""
    return backbone not in UNSEEN or not re.search(UNSEEN[backbone], call)


@dataclass(frozen=True, eq=False)
class Convention:
    """How a table was counted.

    Args:
        counter (Counter, optional): None where the paper prints no such columns.
        size (tuple): Input (H, W).
        mega (int): Parameters in its million.
        giga (int): FLOPs in its billion.
        parts (tuple, optional): The parts of the model that ran; None is all.
        changes (dict): Config options of the authors' network, by their dotted names.
        gates (dict): Gate class -> arguments of its function in `public_gates`.
        evidence (str): What says so.
    """

    counter: Counter | None = None
    size: tuple[int, int] = (224, 224)
    mega: int = 10**6
    giga: int = 10**9
    parts: tuple[str, ...] | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    gates: dict[str, dict[str, Any]] = field(default_factory=dict)
    evidence: str = ''

    def __str__(self) -> str:
        return ', '.join(self._words())

    def _words(self) -> Iterator[str]:
        if self.counter:
            yield self.counter.name
        units = {10**6: '10^6', 2**20: '2^20'}[self.mega], {10**9: '10^9', 2**30: '2^30'}[self.giga]
        yield f'M = {units[0]}, G = {units[1]}, input {self.size[0]}x{self.size[1]}'
        if self.parts:
            yield ' and '.join(self.parts) + ' only'
        for option, value in self.changes.items():
            yield f'{option} = {value}'
        yield from calls(self.gates)


def calls(gates: dict[str, dict[str, Any]]) -> list[str]:
    """As in 'CBAM(pool_modules=True)'."""
    return [
        f'{gate}({", ".join(f"{name}={value}" for name, value in code.items())})'
        for gate, code in gates.items()
    ]


# Section 4.1 names the toolbox. Its get_flops.py runs the backbone and the neck, not the head:
# only so does MobileNetV2-0.75 come to 0.22 and CA on ResNet-101 to 7.92.
_MMCLS = Convention(
    MMCV,
    parts=('backbone', 'neck'),
    evidence="MMClassification's get_flops.py, the toolbox of section 4.1",
)
CONVENTIONS = {
    ('cat', 3): Convention(
        PTFLOPS,
        gates={'CBAM': {'pool_modules': True}, 'CAT': {'maps': 3}},
        evidence="its unit, GMac; all bare rows, over pytorch-cifar100's networks",
    ),
    ('cat', 4): Convention(
        THOP,
        mega=2**20,
        giga=2**30,
        evidence="the formatting of ECA-Net's paras_flops.py; what thop charged is inferred",
    ),
    ('drtam', 1): _MMCLS,
    ('drtam', 2): _MMCLS,
    ('drtam', 3): _MMCLS,
    ('drtam', 4): _MMCLS,
    # Nine anchors a position where the toolbox's default has three: 0.0077 M and 0.032 G more, in
    # all twelve cells. Three scales stand for whatever made them nine: a count sees no more of it.
    # Parameters of the frozen stem and first stage, gates included, do not train.
    ('drtam', 5): Convention(
        MMCV,
        changes={'model.rpn_head.anchor_generator.scales': [4, 8, 16]},
        evidence="MMDetection's get_flops.py, the toolbox of section 4.4",
    ),
    ('drtam', 7): Convention(
        MMCV,
        size=(512, 512),
        evidence="MMSegmentation's get_flops.py, the toolbox of section 4.5",
    ),
}
# Rows counted with other code of the gate than their table: config -> `gates`. Both are of
# DRTAM's Table 4, where CBAM comes to 4.13 and 7.86 unless its pools were seen, as in no other row.
ROWS = {
    'drtam/resnet50-cbam-r16_4xb128_in1k.py': {'CBAM': {'pool_modules': True}},
    'drtam/resnet101-cbam-r16_4xb96_in1k.py': {'CBAM': {'pool_modules': True}},
}
# For tables without such columns, and configs in no table.
DEFAULTS = {
    'mmpretrain': Convention(),
    'mmdet': Convention(size=(800, 1344)),
    'mmseg': Convention(size=(512, 512)),
}
