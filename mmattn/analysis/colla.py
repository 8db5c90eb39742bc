"""CAT's colla-factors of trained models: from checkpoints alone, and over training from logs."""

import json
import math
import re
from pathlib import Path
from typing import NamedTuple

from mmattn.attention.cat import POOLS
from mmattn.runs import checkpoint
from mmattn.runs.errors import UserError

from .config_of import config_inside
from .gates import entries_of

NAMES = dict(avg='alpha', max='beta', ent='gamma')
FACTORS = ('C_w', 'S_w', *(f'{axis}_{name}' for axis in 'CS' for name in NAMES.values()))
PARAMETER = re.compile(r'(.*)\.(exterior_logits|channel_factors|spatial_factors)$')
SCALAR = re.compile(r'colla/(.+)/(\w+)$')


class Factors(NamedTuple):
    """The factors of one model: of each gate, in the order of depth, by the paper's names."""

    label: str
    gates: dict[str, dict[str, float]]


class Course(NamedTuple):
    """The factors over a training: of each gate and factor the steps and values."""

    label: str
    gates: dict[str, dict[str, list[tuple[int, float]]]]


def from_checkpoint(path: str | Path) -> Factors:
    """The factors in a checkpoint as they act: exterior ones, and interior ones where its config
    says so, through a softmax.

    Raises:
        UserError: if there are none, or if it carries no config and they could be several pools'.
    """
    found = checkpoint.load(path)
    weights = found.get('state_dict', found)
    raw: dict[str, dict[str, list[float]]] = {}
    for key, value in weights.items():
        match = PARAMETER.match(key)
        if match:
            raw.setdefault(match.group(1), {})[match.group(2)] = value.float().tolist()
    if not raw:
        raise UserError(f'{path} holds no colla-factors: its model has no CAT, or one without any')
    pools, softmax = _choices(path, found.get('meta') or {}, raw)
    gates = {}
    for name, values in raw.items():
        gates[name] = factors = {}
        if 'exterior_logits' in values:
            factors['C_w'], factors['S_w'] = _softmax(values['exterior_logits'])
        for axis, key in (('C', 'channel_factors'), ('S', 'spatial_factors')):
            inner = values.get(key, [])
            inner = _softmax(inner) if softmax else inner
            names = [f'{axis}_{NAMES[pool]}' for pool in pools]
            factors.update(zip(names, inner, strict=bool(inner)))
    return Factors(label_of(path), gates)


def label_of(path: str | Path) -> str:
    """What to call the run of a checkpoint or log: its folder, with the seed; or its file."""
    folder = Path(path).resolve()
    while folder.name in ('vis_data', 'scalars.json') or re.fullmatch(r'\d{8}_\d{6}', folder.name):
        folder = folder.parent
    if folder.suffix == '.pth':
        folder = folder.parent if folder.stem.startswith(('epoch', 'iter', 'best')) else folder
    seed = re.fullmatch(r'seed\d+', folder.name)
    return f'{folder.parent.name}, {folder.name}' if seed else folder.stem


def _softmax(values):
    powers = [math.exp(v - max(values)) for v in values]
    return [power / sum(powers) for power in powers]


def _choices(path, meta, raw):
    """Which pools the interior factors belong to, and whether they act through a softmax."""
    lengths = {
        len(v) for values in raw.values() for k, v in values.items() if k != 'exterior_logits'
    }
    if not meta.get('cfg'):
        if lengths - {len(POOLS)}:
            raise UserError(f'{path} carries no config, which says what its factors belong to')
        return POOLS, False
    said = {
        (
            tuple(pool for pool in POOLS if pool in entry.get('pools', POOLS)),
            bool(entry.get('interior_softmax', False)),
        )
        for entry in entries_of('CAT', config_inside(path).to_dict().get('model', {}))
    }
    if len(said) > 1:
        raise UserError(f'{path}: its CATs differ in pools or interior_softmax: not drawn as one')
    pools, softmax = said.pop() if said else (POOLS, False)
    if lengths - {len(pools)}:
        raise UserError(f"{path}: its factors are not those of its config's pools {pools}")
    return pools, softmax


def from_logs(path: str | Path) -> Course:
    """What `CollaFactorHook` logged of a run.

    Args:
        path (str or Path): A run's folder, of whose starts all are read, or a `scalars.json`.

    Raises:
        UserError: if nothing was logged there.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.rglob('vis_data/scalars.json'))
    points: dict[str, dict[str, dict[int, float]]] = {}
    for file in files:
        for line in file.read_text(encoding='utf-8', errors='replace').splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # the line at which a run was cut off
                continue
            step = record.pop('step', 0) if isinstance(record, dict) else None
            for key, value in record.items() if step is not None else ():
                match = SCALAR.match(key)
                if match and match.group(2) in FACTORS:
                    gate, factor = match.groups()
                    # A resumed run says again what came after its checkpoint.
                    points.setdefault(gate, {}).setdefault(factor, {})[step] = value
    if not points:
        raise UserError(
            f'{path}: no colla-factors are logged there; the config of the training needs '
            "custom_hooks=[dict(type='CollaFactorHook')]"
        )
    gates = {
        gate: {factor: sorted(steps.items()) for factor, steps in factors.items()}
        for gate, factors in points.items()
    }
    return Course(label_of(path), gates)
