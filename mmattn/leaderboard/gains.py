"""What the rows of a board gain over their baselines, corrected over the table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mmattn.papers.metrics import Metric, is_number

from . import judge
from .board import ALONE, BASELINE, ONE_SEED, Cell, Row
from .collect import Known


def with_gains(rows: Sequence[Row], metrics: dict[str, Metric], known: Known) -> list[Row]:
    """The rows with what they gain over their baselines, p-values corrected over the table."""
    plain = {}
    for row in rows:
        if not row.own:
            plain.setdefault(row.group, row)
    # A group whose first row has a gate already has no baseline.
    bases = {group: row for group, row in plain.items() if not row.method.startswith('+')}
    compared = {
        row.group for row in rows if row.group in bases and row.config != bases[row.group].config
    }
    by_name = {(row.config, row.alternatives): row for row in rows}
    gains, families, whys = {}, {}, {}
    for at, row in enumerate(rows):
        base = bases.get(row.group)
        whys[at] = BASELINE if base and row.group in compared else ALONE
        if base is None or row.config == base.config:
            continue
        names = tuple(name for name in row.alternatives if name in known.fitting(base.config))
        same = by_name.get((base.config, names))
        if same is None:
            whys[at] = ALONE
            continue
        whys[at] = ''
        for name in metrics:
            gains[at, name] = found = _gain(row, same, name)
            families.setdefault((row.alternatives, row.own), []).append((at, name, found))
    # A table with an alternative is planned to be as large as the table.
    planned = max((len(family) for (_, own), family in families.items() if not own), default=0)
    for (_, own), family in families.items():
        run = [(at, name, found) for at, name, found in family if found is not None]
        more = max(0, (len(family) if own else planned) - len(run))
        ps = judge.holm([found.p for *_, found in run] + [1.0] * more)
        equals = judge.holm(
            [1.0 if found.p_equivalent is None else found.p_equivalent for *_, found in run]
            + [1.0] * more
        )
        for (at, name, found), p, equal in zip(run, ps, equals, strict=False):
            told = found.p_equivalent is not None
            gains[at, name] = replace(found, p=p, p_equivalent=equal if told else None)
    return [
        replace(
            row,
            cells={
                name: replace(cell, gain=gains.get((at, name)), why=_why(cell, whys[at]))
                for name, cell in row.cells.items()
            },
        )
        for at, row in enumerate(rows)
    ]


def _why(cell: Cell, why: str) -> str:
    """Why there is no gain: the row has too few runs, or what it has to do with a baseline."""
    if not cell.ours:
        return judge.NOT_RUN
    return why if why == BASELINE else ONE_SEED if len(cell.ours) == 1 else why


def _gain(row: Row, base: Row, name: str) -> judge.Gain | None:
    ours, theirs = row.cells[name], base.cells[name]
    sign = ours.metric.sign
    paper = None
    if is_number(ours.paper) and is_number(theirs.paper):
        paper = sign * (ours.paper - theirs.paper)
    paired = ours.ours.keys() == theirs.ours.keys() and all(
        _pair(row, base, seed) for seed in ours.ours
    )
    return judge.gain(
        [sign * value for value in ours.ours.values()],
        [sign * value for value in theirs.ours.values()],
        paper,
        judge.MARGINS[name],
        paired,
        ours.metric.step,
    )


def _pair(row: Row, base: Row, seed: int) -> bool:
    """Whether a seed of both began with the same weights of the host and saw the same images: a
    gate takes nothing from the host's random numbers, so they do where code and data are the same.
    """
    first, second = (
        next(run.record for run in those.runs if run.seed == seed) for those in (row, base)
    )
    if first['pretrained'] or second['pretrained'] or first['commit'] is None:
        return False
    one: Mapping[str, object] = first
    other: Mapping[str, object] = second
    keys = ('commit', 'diff_sha256', 'data_sha256', 'versions', 'processes', 'batch')
    return all(one[key] == other[key] for key in keys)
