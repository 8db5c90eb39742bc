"""What tools/quickstart.sh does after the set-up: data, trainings, and the leaderboard of them.

Whatever is finished is kept, so that a second start goes on.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from mmattn.datasets import digits
from mmattn.leaderboard.build import boards
from mmattn.leaderboard.collect import Folder
from mmattn.leaderboard.render import render, show
from mmattn.papers import own
from mmattn.runs import atomic, locks, record
from mmattn.runs.errors import INTERRUPTED, USER_ERROR, UserError

PROCESSES = 2
DATA_ROOT = Path('data/digits')
WORK_DIR = Path('work_dirs/quickstart')
PAGE = WORK_DIR / 'leaderboard.html'
SEED = 0
DATA: dict[str, dict[str, Any]] = {  # arguments of `digits.make`
    'imagenet': dict(num=2500, num_val=300, size=64),
    'cifar': dict(num=1500, num_val=300),
    'coco': dict(num=900, num_val=120, size=96),
    'voc': dict(num=900, num_val=120, size=96),
    'vocseg': dict(num=900, num_val=120, size=96),
}


class Task(NamedTuple):
    config: str
    data: str
    name: str
    model: str
    metric: str  # as the evaluator calls it
    label: str
    scale: float = 1.0  # to percent


TASKS = (
    Task(
        'resnet18-cat_digits-cifar.py',
        'cifar',
        'classification (CIFAR-100 files)',
        'ResNet-18 + CAT',
        'accuracy/top1',
        'top-1',
    ),
    Task(
        'resnet18-drtam_digits-in1k.py',
        'imagenet',
        'classification (ImageNet folders)',
        'ResNet-18 + DRTAM',
        'accuracy/top1',
        'top-1',
    ),
    Task(
        'faster-rcnn_r18-cat_fpn_digits-voc.py',
        'voc',
        'detection (VOC)',
        'Faster R-CNN + CAT',
        'pascal_voc/AP50',
        'AP50',
        100,
    ),
    Task(
        'retinanet_r18-cat_fpn_digits-coco.py',
        'coco',
        'detection (COCO)',
        'RetinaNet + CAT',
        'coco/bbox_mAP_50',
        'AP50',
        100,
    ),
    Task(
        'mask-rcnn_r18-drtam_fpn_digits-coco.py',
        'coco',
        'instances (COCO)',
        'Mask R-CNN + DRTAM',
        'coco/segm_mAP_50',
        'mask AP50',
        100,
    ),
    Task(
        'fcn_r18-d8-drtam-pool_digits-voc.py',
        'vocseg',
        'segmentation (VOC)',
        'FCN + DRTAM',
        'mIoU',
        'mIoU',
    ),
)


def run(command: Sequence[str | Path], log: Path) -> None:
    """Runs a command, keeps its output in a file and shows the lines of progress.

    Raises:
        SystemExit: After the last lines of the output, if the command fails.
    """
    environment = dict(os.environ, PYTHON=sys.executable)
    environment.pop('MMATTN_DATA', None)  # the digits are here
    with (
        open(log, 'w') as file,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None  # a pipe
        last: deque[str] = deque(maxlen=15)
        for line in process.stdout:
            file.write(line)
            last.append(line)
            if any(word in line for word in ('(train) [', '(val) [', '(test) [')):
                # without mmengine's date and logger
                print('    ' + line.split(' - ')[-1].strip()[:110], flush=True)
    if process.returncode:
        sys.exit(f'{"".join(last)}\nerror: {" ".join(map(str, command))} failed, see {log}')


def _read(path: Path) -> dict[str, Any]:
    """The dict in a JSON file; none where there is no such file, or a damaged one."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def folder(task: Task) -> Path:
    """Where a task is trained: where the leaderboard looks for it."""
    return record.folder_of(WORK_DIR, f'quickstart/{task.config}', [], SEED)


def train_and_test(task: Task, tools: Path, configs: Path) -> dict[str, Any]:
    """Result of one task: parameters, untrained and trained metric, seconds; kept in its folder."""
    config, work_dir = configs / task.config, folder(task)
    kept = work_dir / 'result.json'
    text = Config.fromfile(config, import_custom_modules=False).pretty_text + json.dumps(DATA)
    key = hashlib.sha256(text.encode()).hexdigest()
    known = _read(kept)
    if known.get('key') != key:
        shutil.rmtree(work_dir, ignore_errors=True)
        work_dir.mkdir(parents=True)
        known = dict(key=key, seconds=0.0)
        kept.write_text(json.dumps(known))
    if 'trained' in known:
        print('    finished before')
        return known
    started = time.time()
    command = ['bash', str(tools / 'dist_train.sh'), str(config), str(PROCESSES)]
    command += ['--work-dir', str(work_dir), '--seed', str(SEED), '--record', '--resume']
    try:
        run(command, work_dir / 'train.log')
        untrained, tested = _read(work_dir / 'untrained.json'), _final(work_dir)
        if not untrained or tested is None:
            name = record.NAME if untrained else 'untrained.json'
            message = f'{work_dir / name} is damaged; without the folder it trains again'
            print(f'error: {message}', file=sys.stderr)
            sys.exit(USER_ERROR)
        known.update(
            parameters=untrained['parameters'],
            # COCO's evaluator has no metrics for a model that detects nothing, or says -1
            untrained=max(untrained['metrics'].get(task.metric, 0), 0) * task.scale,
            trained=max(tested.get(task.metric) or 0, 0) * task.scale,
        )
    finally:
        known['seconds'] += time.time() - started
        kept.write_text(json.dumps(known))
    return known


def _final(work_dir: Path) -> dict[str, float | None] | None:
    """The metrics at the end of a training, on digits that it has not seen; None if unknown."""
    try:
        found = record.read(work_dir)
    except (OSError, record.RecordError):
        return None
    return found['final'] and found['final']['last']


def line(task: Task, result: dict[str, Any]) -> str:
    """A task's result in one line."""
    return (
        f'{task.label} {result["trained"]:.1f} % (untrained {result["untrained"]:.1f} %), '
        f'{result["parameters"] / 1e6:.2f} M parameters, {result["seconds"]:.0f} s'
    )


def leaderboard(tasks: Sequence[Task], tables: Path) -> None:
    """Prints the leaderboard of the tasks and writes its page.

    Args:
        tasks (list[Task]): Those that were run.
        tables (Path): The file of the quickstart's tables.
    """
    ran = {f'quickstart/{task.config}' for task in tasks}
    numbers = [
        table.number
        for table in own.select('quickstart', files=[tables])
        if any(entry.config in ran for entry in table.entries)
    ]
    found = boards('quickstart', numbers, [Folder(WORK_DIR)], files=[tables])
    show(found)
    atomic.write_text(PAGE, render(found, 'html'))
    print(f'The same as a page, with curves and configs: {PAGE.resolve()}')


def main(only: str | None = None) -> None:
    """Run all tasks, or those whose name begins with `only`, as far as they are not finished.

    One at a time in this folder: another waits, and finds them finished.
    """
    with locks.owning(WORK_DIR, 'another quickstart', wait=True):
        _run_all(only)


def _run_all(only: str | None) -> None:
    root = Path(__file__).resolve().parents[2]
    started = time.time()
    tasks = [task for task in TASKS if task.name.startswith(only or '')]
    for data in dict.fromkeys(task.data for task in tasks):
        if digits.make(DATA_ROOT, data, **DATA[data]):
            print(f'[data] handwritten digits as {data} in {DATA_ROOT}', flush=True)
    for task in tasks:
        print(f'[{TASKS.index(task) + 1}/{len(TASKS)}] {task.name}: {task.model}', flush=True)
        result = train_and_test(task, root / 'tools', root / 'configs/quickstart')
        print(f'    {line(task, result)}', flush=True)
    print()
    leaderboard(tasks, root / 'configs/quickstart/paper_tables.yml')
    print(f'{time.time() - started:.0f} s on {PROCESSES} processes')


if __name__ == '__main__':
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        print('\ninterrupted; the same command goes on from here', file=sys.stderr)
        sys.exit(INTERRUPTED)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(USER_ERROR)
