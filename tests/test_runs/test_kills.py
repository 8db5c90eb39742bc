"""Trainings that are killed at random end with the weights of one that was not.

`MMATTN_KILLS=50 pytest -m slow tests/test_runs/test_kills.py -s` kills as often and says what.
"""

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import toy

DIST_TRAIN = Path(__file__).parents[2] / 'tools' / 'dist_train.sh'
TARGETS = ('first worker', 'second worker', 'all workers', 'launcher')


class Training:
    """Two processes, 40 iterations of a twentieth of a second, a checkpoint after each tenth."""

    def __init__(self, folder, **kind):
        cfg = toy.config(folder / 'work', size=40, **kind)
        cfg['train_dataloader']['dataset']['pause'] = 0.025
        self.config, self.work, self.log = folder / 'run.py', folder / 'work', folder / 'log'
        folder.mkdir()
        toy.write(self.config, cfg)

    def start(self, *options):
        with open(self.log, 'a') as log:
            return subprocess.Popen(
                ['bash', DIST_TRAIN, self.config, '2', *options],
                env=toy.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def end(self, process, timeout=1800):
        try:
            assert process.wait(timeout) == 0, self.log.read_text()[-3000:]
        finally:  # what hangs is not left running; the launcher ends its workers
            process.terminate()
            process.wait()
        last = (self.work / 'last_checkpoint').read_text()
        checkpoint = torch.load(last, weights_only=False)
        assert checkpoint['meta']['iter'] == 40
        return checkpoint['state_dict']


def workers(launcher):
    return [
        int(pid) for pid in Path(f'/proc/{launcher}/task/{launcher}/children').read_text().split()
    ]


def kill(launcher, target):
    """Kills; returns whether there was somebody to kill: the workers may not be there yet."""
    try:
        pids = workers(launcher)
    except FileNotFoundError:
        return False
    chosen = {
        'first worker': pids[:1],
        'second worker': pids[1:],
        'all workers': pids,
        'launcher': [launcher],
    }[target]
    for pid in chosen:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(chosen)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    'kind', [dict(iters=40, interval=10), dict(epochs=4, interval=1)], ids=['iterations', 'epochs']
)
def test_random_kills(tmp_path, kind):
    times = int(os.environ.get('MMATTN_KILLS', 6)) // 2
    whole = Training(tmp_path / 'whole', **kind)
    begun = time.monotonic()
    expected = whole.end(whole.start())
    seconds = time.monotonic() - begun
    dice, done, tries = random.Random(str(kind)), 0, 0
    while done < times:
        tries += 1
        training = Training(tmp_path / f'killed_{tries}', **kind)
        target, delay = TARGETS[done % len(TARGETS)], dice.uniform(0, seconds)
        begun = time.monotonic()
        process = training.start()
        while not (killed := time.monotonic() > begun + delay and kill(process.pid, target)):
            if process.poll() is not None:
                break
            time.sleep(0.02)
        if target == 'launcher' and killed:
            process.wait()
            process = training.start('--resume')
        assert toy.same(training.end(process), expected), (target, delay)
        if not killed:  # it ended before
            seconds = time.monotonic() - begun
            continue
        done += 1
        print(f'{done}: {target} after {delay:.1f} of {seconds:.1f} s', flush=True)
