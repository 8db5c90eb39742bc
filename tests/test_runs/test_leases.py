"""Leases: one holder at a time, whoever ends how."""

import json
import os
import signal
import subprocess
import sys
import time

from mmattn.runs import leases

HOLD = 'import sys, time; print(flush=True); time.sleep(60)'


def test_one_holder_at_a_time(tmp_path):
    path = tmp_path / 'run' / leases.NAME
    assert not leases.is_held(path)
    lease = leases.take(path, 'one')
    assert leases.is_held(path)
    assert leases.take(path, 'other') is None
    assert leases.holder(path).startswith(f'one (process {os.getpid()} on ')
    lease.release()
    assert not leases.is_held(path)
    other = leases.take(path, 'other')
    assert other is not None
    other.release()


def test_a_lease_that_was_handed_down_outlives_its_holder(tmp_path):
    """As a training's does when the driver is killed."""
    path = tmp_path / leases.NAME
    script = (
        'import os, subprocess, sys\nfrom mmattn.runs import leases\n'
        f'lease = leases.take({str(path)!r}, "a driver")\n'
        f'child = subprocess.Popen([sys.executable, "-c", {HOLD!r}], pass_fds=[lease.fileno()])\n'
        'print(child.pid, flush=True)\nos.kill(os.getpid(), 9)\n'
    )
    driver = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, text=True)
    child = int(driver.stdout.readline())
    assert driver.wait() == -signal.SIGKILL
    assert leases.take(path, 'another') is None and leases.is_held(path)
    os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (lease := leases.take(path, 'another')) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert lease is not None
    lease.release()


def test_where_locks_do_not_reach_another_machine_its_heartbeat_does(tmp_path):
    path = tmp_path / leases.NAME
    path.write_text(json.dumps(dict(host='elsewhere', pid=1, what='a driver', at=0)))
    assert leases.take(path, 'we') is None and leases.is_held(path)
    old = time.time() - leases.STALE - 1
    os.utime(path, (old, old))
    assert not leases.is_held(path)
    lease = leases.take(path, 'we')
    assert lease is not None
    os.utime(path, (old, old))
    lease._touched -= leases.BEAT
    lease.beat()
    assert time.time() - path.stat().st_mtime < leases.STALE
    lease.release()


def test_slots_are_shared_between_drivers(tmp_path, monkeypatch):
    monkeypatch.setattr(leases.tempfile, 'gettempdir', lambda: str(tmp_path))
    one, other = leases.Slots('cpu', '012'), leases.Slots('cpu', '012')
    two = one.take(2, 'a run')
    assert list(two) == ['0', '1']
    assert other.take(2, 'another') is None
    assert list(other.take(1, 'another')) == ['2']  # which the failed attempt has given back
    for lease in two.values():
        lease.release()
    assert list(other.take(2, 'another')) == ['0', '1']
