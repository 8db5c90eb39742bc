"""How long made-up records with logs take to be collected and rendered as a page.

python tests/test_leaderboard/bench_leaderboard.py [number of records ...]   (default: 100 and 1000)
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import synthetic as made_up

from mmattn.leaderboard.build import boards
from mmattn.leaderboard.render import render
from mmattn.leaderboard.sources import Folder
from mmattn.papers import entries, load
from mmattn.papers.metrics import metrics_of

EVALUATIONS, LINES = 20, 400


def make(root: Path, count: int) -> None:
    """So many records of CAT's tables, seed after seed, each with a log and scalars."""
    # A config of two tables is one run of both.
    listed = [*{entry.config: entry for entry in entries('cat')}.values()]
    for at in range(count):
        entry = listed[at % len(listed)]
        values = {
            metric.key: (100 - value if metric.error else value) / metric.scale + at / 1e5
            for name, metric in metrics_of(load('cat')[entry.table]).items()
            for value in [entry.values[name]]
        }
        found = made_up.record(entry.config, at // len(listed), values, evaluations=EVALUATIONS)
        path = made_up.save(root, found)
        logs = path.parent / 'start' / 'vis_data'
        logs.mkdir(parents=True, exist_ok=True)
        (logs.parent / 'start.log').write_text('a line of a log that says how it goes\n' * LINES)
        (logs / 'start.json').write_text(
            ''.join(json.dumps({'loss': 1.0, 'step': step}) + '\n' for step in range(LINES))
        )


def measure(root: Path) -> str:
    """Seconds to collect and to render all of CAT's tables, with those of the processor."""
    times = [(time.perf_counter(), time.process_time())]
    found = boards('cat', [], [Folder(root)])
    times.append((time.perf_counter(), time.process_time()))
    page = render(found, 'html')
    times.append((time.perf_counter(), time.process_time()))
    runs = {run.place for board in found for row in board.rows for run in row.runs}
    spent = [
        f'{after[0] - before[0]:.2f} s ({after[1] - before[1]:.2f} s of a processor)'
        for before, after in zip(times, times[1:], strict=False)
    ]
    return (
        f'{len(runs)} runs collected in {spent[0]}, rendered in {spent[1]}, '
        f'{len(page.encode()) / 1e6:.1f} MB'
    )


def main() -> None:
    if os.environ.get('MMATTN_BENCH_ROOT'):
        print(measure(Path(os.environ['MMATTN_BENCH_ROOT'])))
        return
    for count in map(int, sys.argv[1:] or (100, 1000)):
        with tempfile.TemporaryDirectory() as root:
            make(Path(root), count)
            # a fresh process: nothing is cached
            environment = dict(os.environ, MMATTN_BENCH_ROOT=root)
            print(f'{count} records: ', end='', flush=True)
            subprocess.run([sys.executable, __file__], env=environment, check=True)


if __name__ == '__main__':
    main()
