"""What is shown of runs while they run, on a terminal and without one."""

import io
import re
import time

import pytest
from rich.console import Console
from test_local import pretend  # noqa: F401

from mmattn.runs import progress, record, watch


def console(terminal, height=40):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, height=height)


def text(shown):
    """Of a console, without what moves its cursor and colours it."""
    return re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', shown.file.getvalue())


def running(job, iteration, loss=0.25):
    """The record of a run that a training keeps."""
    found = record.new(job.run.config, job.run.alternatives, job.run.seed)
    now = time.time()
    start = dict(at=now - 100, host='a', pid=1, resumed_from=None, ended=None, outcome=None)
    found['starts'] = [start | dict(message=None)]
    found['evaluations'] = [dict(epoch=1, iter=10, at=now, metrics={'accuracy/top1': 71.5})]
    found['progress'] = dict(epoch=2, iter=iteration, max_iters=40, loss=loss, at=now)
    found['state'] = 'running'
    job.folder.mkdir(parents=True, exist_ok=True)
    record.write(job.folder, found)


def test_a_table_that_changes(pretend, monkeypatch):  # noqa: F811
    driver = pretend({'one': None, 'two': None})
    one, two = driver.jobs.values()
    one.state = 'running'
    running(one, 20)
    shown = console(terminal=True)
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, 'monotonic', lambda: next(clock))
    runs = [one.run, two.run]
    with progress.Progress(runs, driver.work_dir, shown, driver.where) as look:
        look.say('one: [started]')
        look()
        said = text(shown)
        assert 'one: [started]' in said
        (line,) = [line for line in said.splitlines() if 'one, seed 0' in line]
        assert [cell.strip() for cell in line.strip('│').split('│')] == [
            'one, seed 0',
            'running 50 %',
            '2',
            '0.25',
            'accuracy/top1 71.5',
            '2 min',
        ]
        assert 'two, seed 0' in said and 'missing' in said
        assert '2 runs: 1 running, 1 missing; 25 % of all steps' in said
        running(one, 30)
        look()
        # An eighth in ten seconds; five are left.
        assert '38 % of all steps, about 50 s left' in text(shown)


def test_a_terminal_that_is_too_small_shows_what_runs(pretend):  # noqa: F811
    driver = pretend({f'row_{number}': None for number in range(20)})
    jobs = list(driver.jobs.values())
    jobs[17].state = 'running'
    running(jobs[17], 1)
    shown = console(terminal=True, height=progress.FRAME + 3)
    runs = [job.run for job in jobs]
    with progress.Progress(runs, driver.work_dir, shown, driver.where) as look:
        look()
    said = text(shown)
    assert 'row_17, seed 0' in said and 'and 17 more; 20 runs: ' in said
    assert len({line.split(',')[0] for line in said.splitlines() if 'seed 0' in line}) == 3


def test_lines_without_a_terminal(pretend, monkeypatch):  # noqa: F811
    driver = pretend({'good': None, 'bad': None})
    shown = console(terminal=False)
    monkeypatch.setattr(progress, 'TELL', 0)
    look = progress.Progress([j.run for j in driver.jobs.values()], driver.work_dir, shown)
    driver.say = look.say
    with look:
        driver.drive(look)
    said = text(shown)
    assert '\x1b' not in shown.file.getvalue()
    assert 'good, seed 0: started on cpu 0 (try 1 of 3)' in said.splitlines()
    assert said.splitlines()[-1] == '2 runs: 1 done, 1 failed; 50 % of all steps'
    # The same is not said again.
    count = len(said.splitlines())
    look()
    assert len(text(shown).splitlines()) == count


def test_looking_keeps_nobody_from_a_lease(pretend, monkeypatch):  # noqa: F811
    """A driver knows which leases are held; the locks of others are not touched."""
    driver = pretend({'good': None})
    monkeypatch.setattr(watch.leases, 'is_held', lambda path: pytest.fail('looked'))
    (job,) = driver.jobs.values()
    assert watch.status(job.run, driver.work_dir, 'idle').state == 'missing'
    running(job, 20)
    said = {'running': 'running', 'idle': 'stopped', 'queued as job 3': 'queued as job 3'}
    for where, state in said.items():
        assert watch.status(job.run, driver.work_dir, where).state == state


def test_markup_in_a_name_is_none(monkeypatch):
    shown = console(terminal=True)
    monkeypatch.setattr(watch.Status, 'cells', lambda self: ('[bold]a', *[''] * 5))
    shown.print(watch.table([watch.Status(None, 'x')]))
    assert '[bold]a' in text(shown)
