"""The gates of a model, by name and stage, and what a pass through the model told of them.

What is told is recorded, not computed again: while `recording` is on, the gates run as equations
(`mmattn.ops.reference`), and each of these notes what it pooled and multiplied by. A test holds it
against what the kernels give.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import wraps
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmattn.attention.gate import Gate
from mmattn.ops import reference, use_impl

# How the hosts name their stages; those of mmpretrain's ShuffleNetV2 count from 0.
STAGE = re.compile(r'(?:^|\.)(?:layer(\d+)|(?:layers|stages)\.(\d+))(?:\.|$)')


class Place(NamedTuple):
    """A gate in a model. `stage` counts from 1; 0 is the stem, None no stage at all (a neck)."""

    name: str
    module: nn.Module
    stage: int | None


def stage_of(name: str) -> int | None:
    """The stage of the host's that a module's name says, see `Place`."""
    found = STAGE.search(name)
    if found:
        first, second = found.groups()
        return int(first) if first else int(second) + 1
    return 0 if 'after_stem' in name.split('.') else None


def gates_of(model: nn.Module) -> list[Place]:
    """All gates in the order of the model: ours, and whatever stands in a slot of a host's."""
    plugged = {
        id(module)
        for host in model.modules()
        if hasattr(host, '_plugin_modules')
        for _, module in host._plugin_modules()
    }
    return [
        Place(name, module, stage_of(name))
        for name, module in model.named_modules()
        if isinstance(module, Gate) or id(module) in plugged
    ]


def select(
    places: Sequence[Place], stages: Sequence[int] = (), names: Sequence[str] = ()
) -> list[Place]:
    """The gates whose names match a pattern of `names` (as of files: `backbone.layer1.*`); without
    any, the first gate of each of the `stages`, by default of all.

    Raises:
        ValueError: if there are no gates, or none that is asked for.
    """
    if not places:
        raise ValueError('the model has no gates: none of its modules is one of mmattn or a plugin')
    if names:
        found = [p for p in places if any(fnmatch(p.name, pattern) for pattern in names)]
        if not found:
            known = ', '.join(place.name for place in places)
            raise ValueError(f'no gate is called {" or ".join(names)}; there are: {known}')
        return found
    first = {}
    for place in places:
        first.setdefault(place.stage, place)
    missing = [stage for stage in stages if stage not in first]
    if missing:
        known = ', '.join(str(stage) for stage in first)
        raise ValueError(f'no gate is in stage {missing[0]}; gates are in the stages {known}')
    return [place for stage, place in first.items() if not stages or stage in stages]


@dataclass
class Seen:
    """What one pass told of a gate.

    Args:
        kind (str): The gate's class.
        shape (tuple): Of its input, (N, C, H, W).
        stats (dict): Pooled maps by name, as the operators give them: `c_avg`, `c_max`, `c_ent`
            (N, C), `s_avg`, `s_max`, `s_ent` (N, H, W), `ch`, `cw`, `hw` of `strip_pool`; the
            descriptors `c`, `h`, `w` of DRTAM's two modules, with a 1 or 2 behind; and what the
            spatial convolution takes, `fused` (N, M, H, W).
        scales (list): What the map was multiplied by, one after the other: name and factors.
        identity (Tensor): The `identity_scale` a of a gate that has one, of 1 or C elements: of the
            factors it lets so much act, 1 + a (factor - 1).
        ratio (Tensor): Sum over channels of |output| over that of |input|, (N, H, W).
    """

    kind: str
    shape: tuple[int, ...]
    stats: dict[str, Tensor] = field(default_factory=dict)
    scales: list[tuple[str, tuple[Tensor, ...]]] = field(default_factory=list)
    identity: Tensor | None = None
    ratio: Tensor | None = None
    given: Tensor | None = None  # its input, while it runs

    @property
    def factors(self) -> dict[str, Tensor]:
        """The factors by the letters of their axes: c (N, C), s (N, H, W), h (N, H) or (N, C, H),
        w; of DRTAM's second map c2, h2, w2."""
        found = {}
        for name, factors in self.scales:
            found.update(zip(AXES[name], factors, strict=False))  # DRTAM may have one map only
        return found

    def attention(self, sample: int = 0) -> Tensor | None:
        """What a sample of the map was multiplied by, all scales together, (C, H, W); None for a
        gate that is not ours."""
        if not self.scales:
            return None
        whole = torch.ones(())
        for name, factors in self.scales:
            whole = whole * product(name, [factor[sample : sample + 1] for factor in factors])
        whole = whole.expand(1, *self.shape[1:])[0]
        return whole if self.identity is None else 1 + self.identity[:, None, None] * (whole - 1)


# The axes of the factors that a scale takes, in order.
AXES = {
    'channel_gate': ('c',),
    'spatial_gate': ('s',),
    'product_gate': ('c', 's'),
    'sum_gate': ('c', 's'),
    'coord_gate': ('h', 'w'),
    'rank1_gate': ('c', 'h', 'w', 'c2', 'h2', 'w2'),
}
POOLS = {
    'channel_pool': ('c_avg', 'c_max'),
    'spatial_pool': ('s_avg', 's_max'),
    'strip_pool': ('ch', 'cw', 'hw'),
}


def product(scale: str, factors: Sequence[Tensor]) -> Tensor:
    """The map of factors that a scale of `mmattn.ops` applies, as it gives it of a map of ones."""
    sizes = dict(zip(AXES[scale], factors, strict=False))
    n, c, h, w = len(factors[0]), 1, 1, 1
    if 'c' in sizes:
        c = sizes['c'].shape[1]
    if 's' in sizes:
        h, w = sizes['s'].shape[1:]
    if 'h' in sizes:
        h, w = sizes['h'].shape[-1], sizes['w'].shape[-1]
        c = sizes['h'].shape[1] if scale == 'coord_gate' else c
    ones = factors[0].new_ones(n, c, h, w)
    if scale == 'rank1_gate':
        return reference.rank1_gate(ones, factors[:3], factors[3:] or None)
    return getattr(reference, scale)(ones, *factors)


def _kept(t: Tensor) -> Tensor:
    return t.detach().float().cpu().clone()


def _note(seen: Seen, name: str, args, out) -> None:
    """Keep what a function of the reference took or gave."""
    stats = seen.stats
    if name in POOLS:
        stats.update(zip(POOLS[name], map(_kept, out), strict=False))
    elif name == 'entropy_pool':
        for axis, group in zip('cs', out, strict=True):
            named = zip(('avg', 'max', 'ent'), group, strict=True)
            stats.update({f'{axis}_{pool}': _kept(t) for pool, t in named if t is not None})
    elif name == 'rank1_pool':
        number = 2 if 'c1' in stats else 1
        stats.update({f'{k}{number}': _kept(t) for k, t in zip('chw', out, strict=True)})
    elif name == 'spatial_conv' and args[0].shape[2] > 1:  # ECA's is one high: no map
        stats['fused'] = _kept(args[0])
    elif name in AXES:
        if args[0] is seen.given:  # from the start again
            seen.scales.clear()
        count = 2 if name == 'rank1_gate' else len(AXES[name])
        factors, rest = args[1 : count + 1], args[count + 1 :]
        if name == 'rank1_gate':
            factors = [factor for three in factors for factor in three or ()]
        if rest and rest[0] is not None:
            seen.identity = _kept(rest[0])
        seen.scales.append((name, tuple(map(_kept, factors))))


@contextmanager
def recording(places: Sequence[Place]) -> Iterator[dict[str, Seen]]:
    """Gives a dict that a forward pass inside fills: of each gate, by name, what it did last.

    The gates run as equations meanwhile. For one thread: functions of `mmattn.ops.reference` are
    replaced for all.
    """
    found, inside, handles = {}, [], []

    def begin(place):
        def hook(module, args):
            seen = Seen(type(module).__name__, tuple(args[0].shape), given=args[0])
            inside.append(seen)
            found[place.name] = seen

        return hook

    def end(module, args, y):
        seen, x = inside.pop(), args[0]
        seen.given = None
        if isinstance(y, Tensor) and x.dim() == 4 and y.shape == x.shape:
            given, left = (_kept(t.detach().abs().sum(1)) for t in (x, y))
            seen.ratio = left / given.clamp_min(torch.finfo(torch.float32).tiny)

    def listening(name, function):
        @wraps(function)
        def heard(*args, **kwargs):
            out = function(*args, **kwargs)
            if inside:
                _note(inside[-1], name, args, out)
            return out

        return heard

    names = (*POOLS, *AXES, 'entropy_pool', 'rank1_pool', 'spatial_conv')
    before = {name: getattr(reference, name) for name in names}
    impls = [(p.module, p.module.impl) for p in places if isinstance(p.module, Gate)]
    try:
        for place in places:
            handles += [
                place.module.register_forward_pre_hook(begin(place)),
                place.module.register_forward_hook(end),
            ]
        for module, _ in impls:
            module.impl = 'reference'
        for name, function in before.items():
            setattr(reference, name, listening(name, function))
        with use_impl('reference'):
            yield found
    finally:
        for name, function in before.items():
            setattr(reference, name, function)
        for module, impl in impls:
            module.impl = impl
        for handle in handles:
            handle.remove()
