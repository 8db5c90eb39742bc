"""What SIGTERM and SIGUSR2 do at other times than in a training step."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy
from mmengine.hooks import Hook

from mmattn.runs import saving, signals
from mmattn.runs.cli import one_line_errors
from mmattn.runs.errors import Stopped


@pytest.mark.parametrize('signum', signals.SIGNALS)
def test_outside_a_training_at_once(signum, monkeypatch, capsys):
    codes = []
    monkeypatch.setattr('mmattn.runs.endings.leave', codes.append)
    before = signal.getsignal(signum)
    with one_line_errors(debug=False):
        signal.raise_signal(signum)
        pytest.fail('goes on')
    assert codes == [75]
    assert capsys.readouterr().err == f'stopped by {signum.name}\n'
    assert signal.getsignal(signum) is before


class At(Hook):
    """Signals, in the middle of an iteration."""

    def __init__(self, *signals, pause=0):
        self.signals, self.pause = signals, pause

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 2:
            for signum in self.signals:
                signal.raise_signal(signum)
                time.sleep(self.pause)


def test_message_names_the_checkpoint(tmp_path, monkeypatch, capsys):
    codes = []
    monkeypatch.setattr('mmattn.runs.endings.leave', codes.append)
    with one_line_errors(debug=False) as state:
        state.runner = toy.runner(toy.config(tmp_path, iters=9, interval=100))
        # twice within a second: a cluster's to each process, and the launcher's
        state.runner.register_hook(At(signal.SIGTERM, signal.SIGUSR2))
        state.runner.train()
    assert codes == [75]
    assert capsys.readouterr().err == (
        f'stopped by SIGTERM; --resume goes on from {tmp_path}/stopped.pth\n'
    )


def test_second_signal_ends_at_once(tmp_path, monkeypatch):
    codes = []

    def leave(code):
        codes.append(code)
        raise SystemExit

    monkeypatch.setattr(signals.os, '_exit', leave)
    monkeypatch.setattr(signals, 'SAME_SIGNAL', 0)
    with signals.request.heard(), pytest.raises(SystemExit):
        run = toy.runner(toy.config(tmp_path, iters=9, interval=100))
        run.register_hook(At(signal.SIGTERM, signal.SIGTERM))
        run.train()
    assert codes == [128 + signal.SIGTERM]
    assert not (tmp_path / 'stopped.pth').exists()


def test_full_disk_still_stops(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(saving.errno.ENOSPC, 'No space left on device')

    cfg = toy.config(tmp_path, iters=9, interval=2)
    with signals.request.heard(), pytest.raises(Stopped):
        run = toy.runner(cfg)
        run.register_hook(At(signal.SIGTERM))
        said = []
        run.logger.error = said.append
        save = run.save_checkpoint
        run.save_checkpoint = lambda *args, **options: (full if run.iter == 2 else save)(
            *args, **options
        )
        run.train()
    assert said == [f'{tmp_path}/stopped.pth was not saved: No space left on device']
    assert saving.pointed(tmp_path) == f'{tmp_path}/iter_2.pth'


def test_data_workers_outlive_the_first(tmp_path):
    """Until the training has saved; a second one, PyTorch's own, ends them."""
    term, user = int(signal.SIGTERM), int(signal.SIGUSR2)
    for sent, code in (((term, user, user), 7), ((term, term), 0)):
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signals.get_worker_info = lambda: True
            signals.shield_worker()
            for signum in sent:
                os.kill(os.getpid(), signum)
                time.sleep(0.05)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code


def test_a_training_with_waiting_workers_comes_to_its_end(tmp_path):
    """Python's exit sends them two signals at once, of which they may see one."""
    cfg = toy.config(tmp_path / 'work', epochs=1)
    cfg['train_dataloader'].update(num_workers=1, persistent_workers=True)
    path = toy.write(tmp_path / 'run.py', cfg)
    train = Path(__file__).parents[2] / 'tools' / 'train.py'
    ran = subprocess.run([sys.executable, train, path], env=toy.environment(), timeout=60)
    assert ran.returncode == 0
