"""Writes the tables of docs/gates: what a gate costs, and what the papers print of it.

A table stands between `<!-- costs: GATE -->` or `<!-- printed: GATE -->` and `<!-- end -->`. Costs
are counted by `mmattn.analysis.complexity` on the meta device, printed numbers are those of
`configs/*/paper_tables.yml`. `python docs/write_tables.py` writes all anew; a test compares.
"""

import re
import sys
from functools import cache
from pathlib import Path

from mmengine.config import Config

from mmattn.analysis.complexity import build, count
from mmattn.analysis.counters import DEFAULTS
from mmattn.papers import config_root, entries, load

FOLDER = Path(__file__).parent / 'gates'
TABLE = re.compile(r'(<!-- (costs|printed): (.*?) -->\n)(.*?)(<!-- end -->)', re.S)
# A gate -> how it is called in the papers' tables, if it is.
GATES: dict[str, str | None] = {
    'SE': '+ SENet',
    'ECA': '+ ECANet',
    'CBAM': '+ CBAM',
    'CoordAttention': '+ CA',
    'CAT': '+ CAT',
    'DRTAM': '+ DRTAM',
    'SimAM': None,
    'TripletAttention': None,
    'EMA': None,
}
NETWORKS = {
    'ResNet-50': ('cat/resnet50_8xb32_in1k.py', 'after_conv3'),
    'MobileNetV2': ('drtam/mobilenet-v2_4xb64_in1k.py', 'after_depthwise'),
}
# The number of a table that stands for it.
METRICS = ('top1', 'top1_error', 'AP', 'mIoU')


@cache
def cost(network: str, gate: str | None) -> tuple[int, int]:
    """Parameters and FLOPs of a network with the gate in every block, or bare."""
    name, position = NETWORKS[network]
    config = Config.fromfile(config_root() / name)
    if gate:
        config.model.backbone.plugins = [dict(cfg=dict(type=gate), position=position)]
    counted = count(build(config), DEFAULTS['mmpretrain'])
    return counted.params, counted.flops


def costs(gates: list[str]) -> str:
    """Lines of a table: what each gate adds to each network, with its default arguments."""
    lines = [
        '| gate | network, position | parameters | FLOPs |',
        '| --- | --- | ---: | ---: |',
    ]
    for gate in gates:
        for network, (_, position) in NETWORKS.items():
            bare, gated = cost(network, None), cost(network, gate)
            params, flops = (
                f'+{100 * (whole - part) / part:.2f} % of {part / unit:.2f} {letter}'
                for part, whole, unit, letter in zip(
                    bare, gated, (1e6, 1e9), ('M', 'G'), strict=True
                )
            )
            lines.append(f'| `{gate}` | {network}, `{position}` | {params} | {flops} |')
    return '\n'.join(lines) + '\n'


def printed(gates: list[str]) -> str:
    """Lines of a table: the papers' number of each row of a gate, beside that of its bare row."""
    lines = [
        '| table | network | metric | bare | with the gate | difference |',
        '| --- | --- | --- | ---: | ---: | ---: |',
    ]
    for gate in gates:
        for entry in entries():
            if not (entry.method == GATES[gate] or _is_ours(entry, gate)):
                continue
            bare = next(
                e
                for e in entries()
                if (e.paper, e.table, e.group) == (entry.paper, entry.table, entry.group)
            )
            if bare.method.startswith('+') or bare.settings:
                continue  # DRTAM's Table 3 has no bare row
            metric = next(m for m in METRICS if m in entry.values)
            ours, theirs = entry.values[metric], bare.values[metric]
            words = ', '.join(f'{key} = {value}' for key, value in entry.settings.items())
            place = {'pool': 'stages', 'bott': 'bottlenecks', None: ''}[entry.placement]
            words = ', '.join(filter(None, [entry.group, words, place]))
            task = load(entry.paper)[entry.table]['dataset']
            lines.append(
                f'| {entry.paper.upper()} {entry.table}, {task} | {words} | {metric} | {theirs} '
                f'| {ours} | {ours - theirs:+.2f}{" (quoted)" if entry.quoted else ""} |'
            )
    return '\n'.join(lines) + '\n'


def _is_ours(entry, gate: str) -> bool:
    """Whether a row of CAT's last table, whose gates are parts of CAT, is the whole one."""
    return gate == 'CAT' and entry.method == 'CAT w/ exterior & interior colla-factors'


def written(text: str) -> str:
    """A page with its tables as they have to be."""
    kinds = {'costs': costs, 'printed': printed}

    def table(match: re.Match) -> str:
        gates = [*GATES] if match[3] == 'all' else [match[3]]
        return match[1] + kinds[match[2]](gates) + match[5]

    return TABLE.sub(table, text)


def main() -> int:
    for page in sorted(FOLDER.glob('*.md')):
        text = page.read_text(encoding='utf-8')
        page.write_text(written(text), encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
