"""Made-up records of rows, for tests and the benchmark: no result of anything."""

import copy
import hashlib
import random

from mmattn.leaderboard.expected import expected_config
from mmattn.papers.metrics import metrics_of
from mmattn.papers.tables import config_root, entries, load
from mmattn.runs.record import RecordError, digest, folder_of, new, write  # noqa: F401

COMMIT = 'c0ffee' * 6 + 'c0ff'


def record(config, seed=0, values=None, alternatives=(), evaluations=3, **changes):
    """A whole record of a finished run; `values` maps the evaluator's keys to its last numbers."""
    import json

    expected = expected_config(str(config_root() / config), tuple(alternatives))
    text = json.dumps(expected.config, sort_keys=True, indent=1)
    values = values or {'accuracy/top1': 75.0}
    found = new(config, alternatives, seed)
    unit, length = expected.length
    steps = []
    for at in range(1, evaluations + 1):
        part = at / evaluations
        epoch = round(length * part) if unit == 'epoch' else 0
        metrics = {key: value * (1 - 0.4 * (1 - part) ** 2) for key, value in values.items()}
        iteration = round(length * part) * (100 if unit == 'epoch' else 1)
        steps.append(dict(epoch=epoch, iter=iteration, at=1.0 + at, metrics=metrics))
    start = dict(at=1.0, host='host', pid=1, resumed_from=None, ended=9.0, outcome='done')
    found.update(
        config_text=text,
        config_sha256=digest(text),
        commit=COMMIT,
        versions={'torch': '2.8.0', 'mmengine': '0.10.7'},
        machines=['host'],
        gpus=expected.gpus,
        processes=expected.gpus,
        batch=expected.batch,
        lr=expected.lr,
        starts=[{**start, 'message': None}],
        evaluations=steps,
        final=dict(
            last=dict(steps[-1]['metrics']),
            best=dict(steps[-1]['metrics']),
            best_epoch=steps[-1]['epoch'],
        ),
        checkpoint=dict(
            name='last.pth',
            sha256=hashlib.sha256(f'{config}{alternatives}{seed}'.encode()).hexdigest(),
            weights_sha256=hashlib.sha256(f'w{config}{alternatives}{seed}'.encode()).hexdigest(),
        ),
        state='done',
    )
    found.update(copy.deepcopy(changes))
    return found


def save(root, found):
    """Write a record at its place; returns the path."""
    folder = folder_of(root, found['config'], found['alternatives'], found['seed'])
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, found)
    return folder / 'record.json'


def near_paper(paper, table, seeds, root, shift=0.0, spread=0.15, evaluations=20, rows=None):
    """Records of a table's rows whose numbers lie about the paper's, as made up by a generator."""
    chance = random.Random(0)
    metrics = metrics_of(load(paper)[table])
    for at, entry in enumerate(entries(paper, table)):
        if rows is not None and at not in rows:
            continue
        for seed in range(seeds):
            values = {}
            for metric in metrics.values():
                value = entry.values[metric.column] + shift + chance.gauss(0, spread)
                value = (100 - value if metric.error else value) / metric.scale
                values[metric.key] = round(value, 4)
            save(root, record(entry.config, seed, values, evaluations=evaluations))
