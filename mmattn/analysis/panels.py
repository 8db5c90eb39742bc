"""What is drawn of a gate: what `mmattn.analysis.gates` recorded, under the papers' names.

Entropies are drawn as the gate takes them, normalised (CAT, eq. 4) where the operator tells so.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .gates import Seen

# Panels of a spatial map that may be laid over the picture.
OVER = ('gate', 'ratio')
# What the map is multiplied by, or would be: numbers whose size means something.
FACTORS = ('s', 'c', 'h', 'w', 'S_A', 'a_i', 'a_c', *OVER)


class Panel(NamedTuple):
    """One picture of a gate. `values` are (H, W) of a 'map' over the picture, (A, B) of a 'strip'
    that lies over one of its axes only, or (L,) of 'bars'."""

    key: str
    title: str
    kind: str
    values: np.ndarray


MAPS = dict(
    s_avg=r'$S_{Avg}$',
    s_neg=r'$-S_{Avg}$',
    s_max=r'$S_{Max}$',
    s_ent=r'$S_{Ent}$',
    S_A=r"$S'_A$",
    s=r'spatial factor',
)
BARS = dict(
    c_avg=r'$C_{Avg}$', c_max=r'$C_{Max}$', c_ent=r'$C_{Ent}$', C_A=r"$C'_A$", c='channel factor'
)
SHOWN = {
    'CAT': ('s_avg', 's_neg', 's_max', 's_ent', 's', 'c', 'gate'),
    'CBAM': ('c', 's_avg', 's_max', 's', 'gate'),
    'SE': ('c_avg', 'c', 'ratio'),
    'ECA': ('c_avg', 'c', 'ratio'),
    'CoordAttention': ('h', 'w', 'gate'),
    'DRTAM': ('d_c', 'd_h', 'd_w', 'a_i', 'a_c', 'gate'),
}
FOREIGN = ('ratio',)


def panels(seen: Seen, sample: int = 0) -> dict[str, Panel]:
    """All panels of a gate by their keys.

    `gate` is what the map was multiplied by, averaged over its channels; `ratio` is |output| over
    |input|, each summed over the channels, which there is for every gate that keeps the shape.
    """
    found = []

    def add(key, title, kind, values):
        found.append(Panel(key, title, kind, np.asarray(values, dtype=np.float32)))

    pools = {name: t[sample] for name, t in seen.pools.items()}
    factors = {name: t[sample] for name, t in seen.factors.items()}
    known = {**pools, **factors}
    if seen.kind == 'CAT':  # which subtracts the average (eq. 7)
        if 's_avg' in known:
            known['s_neg'] = -known['s_avg']
        elif 's_neg' in known:
            known['s_avg'] = -known['s_neg']
    for key, title in MAPS.items():
        if key in known:
            add(key, title, 'map', known[key])
    if seen.kind == 'DRTAM':
        _drtam(pools, factors, add)
    else:
        for key, title in BARS.items():
            if key in known:
                add(key, title, 'bars', known[key])
    if seen.kind == 'CoordAttention' and 'h' in factors:
        add('h', 'height factor (h, c)', 'strip', factors['h'].T)
        add('w', 'width factor (c, w)', 'strip', factors['w'])
    attention = seen.attention(sample)
    if attention is not None:
        add('gate', 'gate', 'map', attention.mean(0))
    if seen.ratio is not None:
        add('ratio', '|output| / |input|', 'map', seen.ratio[sample])
    return {panel.key: panel for panel in found}


def _drtam(pools, factors, add):
    """The first module's descriptors, before their norms, and the maps (1): A_I, A_C."""
    for axis in 'chw':
        if f'{axis}1' in pools:
            add(f'd_{axis}', f'descriptor ${axis}$', 'bars', pools[f'{axis}1'])
        if f'{axis}2' in pools:
            add(f'd_{axis}2', f'descriptor ${axis}$ of $A_C$', 'bars', pools[f'{axis}2'])
    for key, title, behind in (('a_i', '$A_I$', ''), ('a_c', '$A_C$', '2')):
        if 'c' + behind in factors:
            c, h, w = (factors[axis + behind] for axis in 'chw')
            # The mean over the channels of c o h o w.
            add(key, title, 'map', c.mean() * h[:, None] * w)


def shown(found: dict[str, Panel], seen: Seen, keys: Iterable[str] | None = None) -> list[Panel]:
    """The panels of a figure, in its order: the `keys` asked for, or the gate's own."""
    return [found[key] for key in keys or SHOWN.get(seen.kind, FOREIGN) if key in found]
