"""What tools/quickstart.sh does after the set-up: data, trainings, tests and one table.

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
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

from mmattn.datasets import digits
from mmattn.runs import locks
from mmattn.runs.errors import INTERRUPTED, USER_ERROR, UserError

PROCESSES = 2
DATA_ROOT = Path('data/digits')
WORK_DIR = Path('work_dirs/quickstart')
DATA = {
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


def run(command, log):
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
        last = deque(maxlen=15)
        for line in process.stdout:
            file.write(line)
            last.append(line)
            if any(word in line for word in ('(train) [', '(val) [', '(test) [')):
                # without mmengine's date and logger
                print('    ' + line.split(' - ')[-1].strip()[:110], flush=True)
    if process.returncode:
        sys.exit(f'{"".join(last)}\nerror: {" ".join(map(str, command))} failed, see {log}')


def _read(path):
    """The dict in a JSON file; none where there is no such file, or a damaged one."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def train_and_test(task, tools, configs):
    """Result of one task: parameters, untrained and trained metric, seconds; kept in its folder."""
    config = configs / task.config
    work_dir = WORK_DIR / config.stem
    record = work_dir / 'result.json'
    text = Config.fromfile(config, import_custom_modules=False).pretty_text + json.dumps(DATA)
    key = hashlib.sha256(text.encode()).hexdigest()
    known = _read(record)
    if known.get('key') != key:
        shutil.rmtree(work_dir, ignore_errors=True)
        work_dir.mkdir(parents=True)
        known = dict(key=key, seconds=0.0)
        record.write_text(json.dumps(known))
    if 'trained' in known:
        print('    finished before')
        return known
    started = time.time()
    try:
        run(
            [
                'bash',
                tools / 'dist_train.sh',
                config,
                str(PROCESSES),
                '--work-dir',
                work_dir,
                '--resume',
            ],
            work_dir / 'train.log',
        )
        checkpoint = (work_dir / 'last_checkpoint').read_text().strip()
        run(
            [
                'bash',
                tools / 'dist_test.sh',
                config,
                checkpoint,
                str(PROCESSES),
                '--work-dir',
                work_dir,
                '--out',
                work_dir / 'test.json',
            ],
            work_dir / 'test.log',
        )
        untrained, tested = _read(work_dir / 'untrained.json'), _read(work_dir / 'test.json')
        for found, name in ((untrained, 'untrained.json'), (tested, 'test.json')):
            if not found:
                message = f'{work_dir / name} is damaged; without the folder it trains again'
                print(f'error: {message}', file=sys.stderr)
                sys.exit(2)
        known.update(
            parameters=untrained['parameters'],
            # COCO's evaluator has no metrics for a model that detects nothing
            untrained=untrained['metrics'].get(task.metric, 0) * task.scale,
            trained=tested[task.metric] * task.scale,
        )
    finally:
        known['seconds'] += time.time() - started
        record.write_text(json.dumps(known))
    return known


def table(results):
    """The results as aligned text.

    Args:
        results (list): Pairs of a :class:`Task` and what :func:`train_and_test` returned.

    Returns:
        str: A header and one line a task.
    """
    rows = [('task', 'model', 'metric', 'untrained %', 'trained %', 'parameters', 'seconds')]
    for task, result in results:
        # COCO's evaluator says -1 when there is nothing to evaluate
        rows.append(
            (
                task.name,
                task.model,
                task.label,
                f'{max(result["untrained"], 0):.1f}',
                f'{max(result["trained"], 0):.1f}',
                f'{result["parameters"] / 1e6:.2f} M',
                f'{result["seconds"]:.0f}',
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append('  '.join(cells).rstrip())
    lines.insert(1, '-' * max(map(len, lines)))
    return '\n'.join(lines)


def main(only=None):
    """Run all tasks, or those whose name begins with `only`, as far as they are not finished.

    One at a time in this folder: another waits, and finds them finished.
    """
    with locks.owning(WORK_DIR, 'another quickstart', wait=True):
        _run_all(only)


def _run_all(only):
    root = Path(__file__).resolve().parents[2]
    started = time.time()
    tasks = [task for task in TASKS if task.name.startswith(only or '')]
    for data in dict.fromkeys(task.data for task in tasks):
        if digits.make(DATA_ROOT, data, **DATA[data]):
            print(f'[data] handwritten digits as {data} in {DATA_ROOT}', flush=True)
    results = []
    for task in tasks:
        print(f'[{TASKS.index(task) + 1}/{len(TASKS)}] {task.name}: {task.model}', flush=True)
        result = train_and_test(task, root / 'tools', root / 'configs/quickstart')
        results.append((task, result))
        print(f'    {task.label} {result["trained"]:.1f} %', flush=True)
    print(f'\n{table(results)}\n\n{time.time() - started:.0f} s on {PROCESSES} processes')


if __name__ == '__main__':
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        print('\ninterrupted; the same command goes on from here', file=sys.stderr)
        sys.exit(INTERRUPTED)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(USER_ERROR)
