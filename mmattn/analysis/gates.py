"""The gates of a model, by name and stage, and what a pass through the model told of them.

What is told is what the pass computed, by kernels or by equations (`mmattn.ops.record`), and what
went into each gate and came out: nothing is computed a second time.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmattn.attention.gate import Gate
from mmattn.hosts.plug.modules import placed
from mmattn.ops import Record, record

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
    """All gates in the order of the model: ours, and whatever stands in a slot of a host's, or was
    plugged."""
    plugged = {
        id(module)
        for host in model.modules()
        if hasattr(host, '_plugin_modules')
        for _, module in host._plugin_modules()  # type: ignore[operator]
    }
    for _, owner, place in placed(model):
        plugged |= {id(getattr(owner, spot.name)) for spot in place.spots}
    return [
        Place(name, module, stage_of(name))
        for name, module in model.named_modules()
        if isinstance(module, Gate) or id(module) in plugged
    ]


def entries_of(kind: str, config: Any) -> Iterator[dict[str, Any]]:
    """The dicts anywhere in a config whose type is `kind`, with or without a scope."""
    if isinstance(config, dict):
        if str(config.get('type')).rpartition('.')[2] == kind:
            yield config
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for item in config:
            yield from entries_of(kind, item)


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
        told (Record): Pools and factors by name, see `mmattn.ops.record`; of a gate that is not
            ours without any.
        identity (Tensor, optional): Its `identity_scale`, of 1 or C elements.
        ratio (Tensor): Sum over channels of |output| over that of |input|, (N, H, W).
        fit (Tensor): Of each channel the sums of input times output and of input squared, (2, C).
    """

    kind: str
    shape: tuple[int, ...]
    told: Record
    identity: Tensor | None = None
    ratio: Tensor | None = None
    fit: Tensor | None = None

    @property
    def pools(self) -> dict[str, Tensor]:
        return {name: _kept(t) for name, t in self.told.pools.items()}

    @property
    def factors(self) -> dict[str, Tensor]:
        return {name: _kept(t) for name, t in self.told.factors.items()}

    def attentions(self) -> Tensor | None:
        """What the map was multiplied by, (N, C, H, W) with ones for axes on which it does not
        depend; None for a gate that tells of no factors."""
        return _kept(self.told.attention()) if self.told.scale else None

    def attention(self, sample: int = 0) -> Tensor | None:
        """`attentions` of one sample, (C, H, W)."""
        whole = self.attentions()
        return None if whole is None else whole[sample].expand(self.shape[1:])


def _kept(t: Tensor) -> Tensor:
    return t.detach().float().cpu()


@contextmanager
def recording(places: Sequence[Place]) -> Iterator[dict[str, Seen]]:
    """Gives a dict that a forward pass inside fills: of each gate, by name, what it did last."""
    found, handles = {}, []

    def listen(place: Place) -> Callable[[nn.Module, tuple[Tensor, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], y: Any) -> None:
            x = args[0]
            if not isinstance(y, Tensor) or x.dim() != 4 or y.shape != x.shape:
                return
            told = [one for one in records if one.gate is module]
            records.clear()
            scale = getattr(module, 'identity_scale', None)
            seen = Seen(
                type(module).__name__,
                tuple(x.shape),
                told[-1] if told else Record(module),
                None if scale is None else _kept(scale),
            )
            x, y = x.detach().float(), y.detach().float()
            given, left = (_kept(t.abs().sum(1)) for t in (x, y))
            seen.ratio = left / given.clamp_min(torch.finfo(torch.float32).tiny)
            seen.fit = _kept(torch.stack([(x * t).sum((0, 2, 3)) for t in (y, x)]))
            found[place.name] = seen

        return hook

    try:
        with record() as records:
            for place in places:
                handles.append(place.module.register_forward_hook(listen(place)))
            yield found
    finally:
        for handle in handles:
            handle.remove()
