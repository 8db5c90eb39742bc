"""A folder has one owner, whom others are told of."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mmattn.runs import locks
from mmattn.runs.errors import UserError

# Without the packages around it, whose import takes seconds.
HOLD = f"""
import sys, types
sys.modules['runs'] = runs = types.ModuleType('runs')
runs.__path__ = [{os.path.dirname(locks.__file__)!r}]
from runs.locks import owning
with owning(sys.argv[1], 'a training'):
    print('held', flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that owns the folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_second_is_refused_by_name(tmp_path, other):
    with pytest.raises(UserError) as refused, locks.owning(tmp_path, 'a test'):
        pass
    message = str(refused.value)
    assert message.startswith(f'{tmp_path} is in use by a training (process {other.pid} on ')
    assert str(tmp_path / locks.NAME) in message and 'choose another folder' in message


def test_second_waits(tmp_path, other, capsys):
    threading.Timer(0.3, other.stdin.close).start()
    begin = time.monotonic()
    with locks.owning(tmp_path, 'a quickstart', wait=True):
        assert time.monotonic() - begin > 0.25
        assert json.loads((tmp_path / locks.NAME).read_text())['pid'] == os.getpid()
    assert capsys.readouterr().err.count('waiting for its end') == 1
    assert (tmp_path / locks.NAME).read_text() == ''


def test_killed_owner_leaves_nothing_to_clean_up(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert json.loads((tmp_path / locks.NAME).read_text())['pid'] == other.pid
    with locks.owning(tmp_path, 'a test'):
        pass


def test_children_do_not_hold_it(tmp_path):
    """Data workers that outlive a killed training for some seconds."""
    with locks.owning(tmp_path, 'a training'):
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
    try:
        code = HOLD.replace('sys.stdin.read()', 'pass')
        ran = subprocess.run([sys.executable, '-c', code, tmp_path], capture_output=True, text=True)
        assert ran.stdout == 'held\n', ran.stderr
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    'owner, free',
    [
        ('', True),
        ('no json', True),
        ('[]', True),
        (dict(pid=2**22 + 1), True),  # no such process
        (dict(pid=1), False),
        (dict(pid=2**22 + 1, machine='another'), False),
    ],
)
def test_without_locks_the_file_decides(tmp_path, monkeypatch, owner, free):
    def unsupported(*args):
        raise OSError(locks.errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(locks.fcntl, 'lockf', unsupported)
    if isinstance(owner, dict):
        owner = json.dumps({**locks._self(), **owner, 'what': 'a test', 'since': 'then'})
    Path(tmp_path / locks.NAME).write_text(owner)
    if free:
        with locks.owning(tmp_path, 'a test'):
            pass
    else:
        with pytest.raises(UserError, match='in use by a test'), locks.owning(tmp_path, 'a test'):
            pass
