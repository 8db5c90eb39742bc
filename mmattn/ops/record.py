"""What gates pool and multiply by, told by the passes that compute it.

    with mmattn.ops.record() as records:
        model(x)
    for record in records:
        record.gate, record.pools['c_avg'], record.factors['c'], record.attention()

The tensors are those that the pass made on its way, by kernels or by equations: nothing is computed
a second time. Without `record` nothing is kept, at no cost; compiled code tells nothing.

Names of pools, by the papers' letters: c_ (N, C) of the channels, s_ (N, H, W) of the positions.

    SE, ECA   c_avg
    CBAM      c_avg, c_max; s_avg, s_max of the map times c
    CA        ch (N, C, H), cw (N, C, W)
    CAT       c_avg, c_max, c_ent; s_neg (the average, negated: eq. 7), s_max, s_ent; entropies as
              eq. 4 normalises them; C_A (N, C) and S_A (N, H, W), what the collaboration of the
              three gives: C'_A and S'_A of eq. 5 and 7. Of an arrangement, or where layers are
              listened to: s_avg in place of s_neg, and entropies in nats
    DRTAM     the planes ch, cw, hw; the descriptors c1 (N, C), h1 (N, H), w1 (N, W) of the first
              module and c2, h2, w2 of the second, before their norms

Names of factors: c, s; h and w; of DRTAM A_I = c o h o w, A_C = c2 o h2 o w2.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import reference


@dataclass
class Record:
    """What one call of a gate, or of an op outside of gates, told.

    Args:
        gate (nn.Module, optional): Which gate ran; None for an op by itself.
        pools (dict): Descriptors by name, detached.
        factors (dict): Factors by name, detached.
        scale (str): How they make what the map is multiplied by: 'channel', 'spatial', 'product',
            'sum', 'coord' or 'rank1'; '' until a scale has run.
        identity_scale (Tensor, optional): a of y = x + a (g(x) - x).
    """

    gate: Any = None
    pools: dict[str, Tensor] = field(default_factory=dict)
    factors: dict[str, Tensor] = field(default_factory=dict)
    scale: str = ''
    identity_scale: Tensor | None = None

    def attention(self) -> Tensor:
        """The gate, fused: what the map was multiplied by, (N, C, H, W) with ones for the axes that
        it is the same along; an identity scale is in it.

        Raises:
            ValueError: if the gate has applied no factors.
        """
        f = self.factors
        if not self.scale:
            raise ValueError('no factors were recorded')
        a = None if self.identity_scale is None else self.identity_scale.reshape(-1, 1, 1)
        if self.scale == 'rank1':
            first, second = self.rank1()
            whole = first if second is None else first + (1 - first) * second
        elif self.scale == 'coord':
            whole = f['h'][..., None] * f['w'][:, :, None]
        else:
            axes = dict(c=(..., None, None), s=(slice(None), None))
            parts = [f[name][at] for name, at in axes.items() if name in f]
            stacked = torch.stack(torch.broadcast_tensors(*parts))
            whole = stacked.sum(0) if self.scale == 'sum' else stacked.prod(0)
        return whole if a is None else 1 + a.to(whole) * (whole - 1)

    def rank1(self) -> tuple[Tensor, Tensor | None]:
        """DRTAM's maps A_I and A_C (None of a single module), (N, C, H, W)."""
        maps = [
            reference.rank1(*(self.factors[axis + number] for axis in 'chw'))
            for number in ('', '2')
            if 'c' + number in self.factors
        ]
        return maps[0], maps[1] if len(maps) > 1 else None


class _Recorder:
    def __init__(self) -> None:
        self.records: list[Record] = []
        self.running: list[Record] = []  # of gates, each within the one before


_recorder: contextvars.ContextVar[_Recorder | None] = contextvars.ContextVar(
    'mmattn_recorder', default=None
)


@contextlib.contextmanager
def record() -> Iterator[list[Record]]:
    """A list to which each call of a gate inside, in this thread, adds its `Record`."""
    recorder = _Recorder()
    token = _recorder.set(recorder)
    try:
        yield recorder.records
    finally:
        _recorder.reset(token)


def is_on() -> bool:
    """Whether somebody records. Never in compiled code: a compiler looks no further."""
    return not torch.compiler.is_compiling() and _recorder.get() is not None


@contextlib.contextmanager
def running(gate: Any) -> Iterator[None]:
    """What is noted inside belongs to this gate. Only where `is_on`."""
    recorder = _recorder.get()
    assert recorder is not None
    made = Record(gate)
    recorder.records.append(made)
    recorder.running.append(made)
    try:
        yield
    finally:
        recorder.running.pop()


def note(
    pools: Mapping[str, Tensor | None] | None = None,
    factors: Mapping[str, Tensor] | None = None,
    scale: str = '',
    identity_scale: Tensor | None = None,
) -> None:
    """Add to the record of the gate that runs, or make one. Only where `is_on`."""
    recorder = _recorder.get()
    assert recorder is not None
    if recorder.running:
        made = recorder.running[-1]
    else:
        made = Record()
        recorder.records.append(made)
    made.pools.update((name, t.detach()) for name, t in (pools or {}).items() if t is not None)
    if factors:
        # Scales one after the other, as CAT's arrangements: of a channel and of a spatial factor.
        if made.scale and made.scale != scale and not made.factors.keys() & factors.keys():
            scale = 'product'
        made.factors.update((name, t.detach()) for name, t in factors.items())
        made.scale = scale
    if identity_scale is not None:
        made.identity_scale = identity_scale.detach()
