"""Runs as jobs: submitted once, found again, requeued, tried again; with a Slurm that pretends.

A cluster of its own is in test_slurm_cluster.py.
"""

import importlib.util
import signal
import subprocess
import threading
import time
from contextlib import nullcontext

import fake_slurm
import pytest
import test_local
import toy_tables
from test_local import starts, states

from mmattn.papers import plan
from mmattn.runs import cluster, leases, needs, provenance, record, slurm, snapshot
from mmattn.runs.driver import Work
from mmattn.runs.errors import UserError

CPU = cluster.Cluster(partition='tests', gpus_per_node=0, cpus_per_process=1, signal_seconds=20)


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Makes a driver whose trainings and whose Slurm pretend."""
    fake = fake_slurm.Slurm(tmp_path, monkeypatch)
    code = fake_slurm.package(tmp_path / 'code', test_local.PRETENCE)
    monkeypatch.setattr(slurm.snapshot, 'make', lambda folder: code)
    monkeypatch.setenv('RECORD', test_local.json.dumps(record.new('', [], 0)))

    def make(rows, where=CPU, **options):
        path = tmp_path / 'mine' / 'tables.yml'
        if not path.exists():
            toy_tables.tables(tmp_path, rows)
        runs = plan.make('mine', [], files=[path], alternatives=['pretrained'] * any(rows.values()))
        said = []
        driver = slurm.Driver(Work(runs, tmp_path / 'work', say=said.append, **options), where)
        driver.said, driver.pause = said, 0.05
        return driver

    make.slurm = fake
    yield make
    fake.end()


def test_a_run_waits_by_the_record_for_what_it_starts_from(pretend):
    rows = {'good_base': None, 'good_one': 'good_base'}
    driver, seen = pretend(rows), []
    assert driver.drive(lambda: seen.append(states(driver)))
    assert all(s['good_one'] == 'idle' for s in seen if s['good_base'] != 'done')
    (args,) = starts(driver, 'good_one')
    assert args[args.index('--pretrained') + 1].endswith('mine/good_base/seed0/epoch_1.pth')
    assert args[0] == '1' and args[2].endswith('mine/good_one.py')
    assert pretend.slurm.submitted == 2
    # What is done is not submitted again.
    assert pretend(rows).drive() and pretend.slurm.submitted == 2


def test_a_plan_goes_on_past_runs_that_fail(pretend):
    rows = {'bad': None, 'good_after': 'bad', 'wrong': None}
    driver = pretend(rows, tries=2)
    assert not driver.drive()
    assert states(driver) == dict(bad='failed', good_after='blocked', wrong='failed')
    assert len(starts(driver, 'bad')) == 2 and len(starts(driver, 'wrong')) == 1
    told = '\n'.join(driver.failures())
    assert 'ended with exit code 1: boom' in told and 'error: no such data' in told
    found = record.read(driver.work_dir / 'mine' / 'bad' / 'seed0')
    assert found['state'] == 'failed' and len(found['starts']) == 2


def test_a_driver_that_starts_again_adopts_what_is_in_the_queue(pretend):
    class Killed(BaseException):
        pass

    def look():
        if pretend.slurm.submitted:
            raise Killed

    pretend.slurm.set('pending')
    with pytest.raises(Killed):
        pretend({'good': None}).drive(look)
    again = pretend({'good': None})
    deadline = time.monotonic() + 1

    def look_again():
        if time.monotonic() > deadline and (pretend.slurm.folder / 'pending').exists():
            assert states(again) == dict(good='running')
            (job,) = again.jobs.values()
            assert again.where(job.run) == 'queued as job 1'
            pretend.slurm.set('pending', False)

    assert again.drive(look_again)
    assert again.said[0].endswith('is job 1 already') and pretend.slurm.submitted == 1


def test_two_drivers_submit_no_run_twice(pretend):
    rows = {f'short_{number}': None for number in range(3)}
    drivers = [pretend(rows) for _ in range(2)]
    for driver in drivers:  # threads hear no signals
        driver._signals = nullcontext
    threads = [threading.Thread(target=d.drive) for d in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=100)
    for driver in drivers:
        assert set(states(driver).values()) == {'done'}
    assert all(len(starts(drivers[0], name)) == 1 for name in rows)


def test_a_job_that_is_asked_to_make_room_is_requeued(pretend):
    """Not submitted anew: it keeps its number, and the training goes on in it."""
    driver, asked = pretend({'cut': None}), []
    folder = driver.work_dir / 'mine' / 'cut' / 'seed0'

    def look():
        if not asked and (folder / 'ready').exists():
            assert leases.is_held(folder / leases.NAME)
            assert leases.holder(folder / leases.NAME).startswith('job 1 of Slurm')
            pretend.slurm.signal(1, signal.SIGUSR2)
            asked.append(True)

    assert driver.drive(look)
    assert asked and len(starts(driver, 'cut')) == 2 and pretend.slurm.submitted == 1


def test_a_job_that_gets_nowhere_is_not_requeued_for_ever(pretend, monkeypatch):
    """Its time limit is too short to save anything."""
    driver = pretend({'stuck': None}, tries=1)
    folder = driver.work_dir / 'mine' / 'stuck' / 'seed0'
    begun = []

    def look():
        if (folder / 'ready').exists():
            (folder / 'ready').unlink()
            begun.append(True)
            pretend.slurm.signal(1, signal.SIGUSR2)

    assert not driver.drive(look)
    assert len(begun) == slurm.task.IDLE + 1 and pretend.slurm.submitted == 1
    assert 'got nowhere' in pretend.slurm.output(driver, 'stuck')


def test_what_a_job_said_before_it_was_requeued_is_no_result(pretend):
    driver, asked = pretend({'cut': None}, tries=1), []
    folder = driver.work_dir / 'mine' / 'cut' / 'seed0'

    def look():
        if not asked and (folder / 'ready').exists():
            assert not (folder / 'slurm' / '1_0_result.pkl').exists()
            pretend.slurm.signal(1, signal.SIGKILL)
            asked.append(True)

    pretend.slurm.set('pending')
    driver.begin_round()
    driver._update(next(iter(driver.jobs.values())))
    (folder / 'slurm' / '1_0_result.pkl').write_bytes(b'of the first life')
    pretend.slurm.set('pending', False)
    driver.drive(look)
    assert asked and 'ended without an exit code' in driver.failures()[0]


def test_a_killed_job_is_tried_again_and_leaves_no_training(pretend):
    driver, asked = pretend({'cut': None}), []
    folder = driver.work_dir / 'mine' / 'cut' / 'seed0'

    def look():
        if not asked and (folder / 'ready').exists():
            pretend.slurm.signal(1, signal.SIGKILL)
            asked.append(True)

    assert driver.drive(look)
    assert len(starts(driver, 'cut')) == 2 and pretend.slurm.submitted == 2
    assert any('ended without an exit code' in line for line in driver.said)


def test_two_drivers_that_have_adopted_a_job_try_it_again_once(pretend):
    """The second to see its end finds the next job in the queue."""
    one, other = pretend({'flaky': None}), pretend({'flaky': None})
    pretend.slurm.set('pending')
    for driver in (one, other):
        driver.begin_round()
        for job in driver.jobs.values():
            driver._update(job)
    pretend.slurm.set('pending', False)
    deadline = time.monotonic() + 30
    while not pretend.slurm.is_over(1) and time.monotonic() < deadline:
        time.sleep(0.05)
    pretend.slurm.set('pending')
    one.begin_round(), other.begin_round()
    (first,), (second,) = one.jobs.values(), other.jobs.values()
    one._update(first), one._update(first)
    assert pretend.slurm.submitted == 2
    other._update(second)
    assert (second.state, second.tries) == ('running', 0)
    assert len(record.read(first.folder)['starts']) == 1


def test_a_trial_is_a_job(pretend, monkeypatch):
    monkeypatch.setattr(slurm, 'PAUSE', 0.05)
    driver = pretend({'good': None, 'bad': None})
    good, bad = [job.run for job in driver.jobs.values()]
    needs.try_out(good, driver, 1)
    assert needs.estimate([good], driver.work_dir, 'slurm-tests', 1) == (60, [])
    with pytest.raises(UserError, match='ended with exit code 1: boom'):
        needs.try_out(bad, driver, 1)
    assert pretend.slurm.submitted == 2


def test_a_slurm_that_does_not_answer_is_waited_for(pretend):
    driver, rounds = pretend({'good': None}), []
    pretend.slurm.set('down')

    def look():
        rounds.append(pretend.slurm.submitted)
        if len(rounds) == 5:
            pretend.slurm.set('down', False)

    assert driver.drive(look)
    assert rounds[:5] == [0] * 5 and pretend.slurm.submitted == 1


def test_a_submission_that_is_refused(pretend):
    driver = pretend({'good': None})
    pretend.slurm.set('refuse')
    assert not driver.drive()
    assert 'sbatch: ' in driver.failures()[0] and 'invalid partition' in driver.failures()[0]
    assert not leases.is_held(driver.work_dir / 'mine' / 'good' / 'seed0' / leases.NAME)


def test_ctrl_c_leaves_the_jobs(pretend):
    pretend.slurm.set('pending')
    driver = pretend({'good': None})

    def look():
        if pretend.slurm.submitted:
            signal.raise_signal(signal.SIGINT)

    assert not driver.drive(look)
    assert not pretend.slurm.is_over(1) and driver.asked_to_stop == 1


def test_what_the_yaml_says_is_asked_for(pretend, tmp_path):
    path = tmp_path / 'cluster.yml'
    path.write_text(
        'partition: gpu\naccount: me\nconstraint: a100\nhours: 12\ngpus_per_node: 4\n'
        'cpus_per_process: 3\nmemory_gb: 64\ncontainer: apptainer exec --nv image.sif\n'
        'setup: [module load cuda]\nsrun_args: [--mpi=none]\nsignal_seconds: 60\n'
        'sbatch: {reservation: night}\n'
    )
    pretend.slurm.set('pending')
    driver = pretend({'good': None}, cluster.read(path), per_run=8)

    def look():
        if pretend.slurm.submitted:
            signal.raise_signal(signal.SIGINT)

    driver.drive(look)
    lines = pretend.slurm.script(1).splitlines()
    wanted = ('partition=gpu', 'account=me', 'constraint=a100', 'time=720', 'nodes=2')
    wanted += ('gpus-per-node=4', 'ntasks-per-node=1', 'cpus-per-task=12', 'mem=65536MB')
    wanted += ('signal=USR2@60', 'reservation=night', 'requeue')
    assert {f'#SBATCH --{option}' for option in wanted} <= set(lines)
    assert lines.index('module load cuda') < lines.index(next(x for x in lines if 'srun' in x))
    (command,) = [line for line in lines if line.startswith('srun')]
    assert '--mpi=none apptainer exec --nv image.sif python -u -m submitit' in command


@pytest.mark.parametrize(
    'text, words',
    [
        ('[1]', 'must have keys and values'),
        ('a: {', 'no YAML'),
        ('walltime: 3', "unknown key 'walltime'; allowed are partition, account"),
        ('hours: 12:00:00', 'hours must be from 0.0167 to 8760, got 43200'),
        ('hours: long', 'hours must be of int or float'),
        ('hours: 0', 'hours must be from 0.0167'),
        ('nodes: true', 'nodes must be of int'),
        ('nodes: 0', 'nodes must be from 1 '),
        ('setup: module load cuda', 'setup must be of list'),
        ('setup: [1]', 'setup must be a list of texts'),
        ('sbatch: {1: 2}', 'sbatch must have names of options'),
    ],
)
def test_a_cluster_that_is_none(tmp_path, text, words):
    path = tmp_path / 'cluster.yml'
    path.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        cluster.read(path)
    assert '\n' not in str(error.value)
    with pytest.raises(UserError, match='No such file'):
        cluster.read(tmp_path / 'none.yml')


@pytest.mark.parametrize(
    'gpus, nodes, processes, shape',
    [(8, None, 4, (1, 4)), (4, None, 8, (2, 4)), (8, 2, 8, (2, 4)), (0, None, 3, (1, 3))],
)
def test_shapes(gpus, nodes, processes, shape):
    assert cluster.Cluster(gpus_per_node=gpus, nodes=nodes).shape(processes) == shape


@pytest.mark.parametrize('gpus, nodes, processes', [(4, None, 7), (4, 2, 3), (2, 1, 4)])
def test_shapes_that_do_not_fit(gpus, nodes, processes):
    with pytest.raises(UserError, match='do not fit'):
        cluster.Cluster(gpus_per_node=gpus, nodes=nodes).shape(processes)


def test_without_slurm_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(UserError, match='not found: sbatch, squeue, srun'):
        slurm.Driver(Work([], tmp_path), CPU)


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / 'a checkout'
    for name in ('mmattn/a.py', 'mmattn/old.py', 'configs/b.py', 'tools/c.py', 'docs/d.md'):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('1\n')

    def git(*args):
        identity = ['-c', 'user.name=x', '-c', 'user.email=x@localhost']
        subprocess.run(['git', *identity, *args], cwd=root, check=True, capture_output=True)

    git('init', '-q')
    git('add', '.')
    git('commit', '-qm', 'one')
    return root


def test_a_snapshot_is_the_code_as_it_was(checkout, tmp_path):
    first = snapshot.make(tmp_path / 'code', checkout / 'mmattn')
    assert provenance.code(first) == provenance.code(checkout)
    (checkout / 'mmattn' / 'a.py').write_text('2\n')
    (checkout / 'mmattn' / 'old.py').unlink()
    (checkout / 'configs' / 'new.py').write_text('new\n')
    second = snapshot.make(tmp_path / 'code', checkout / 'mmattn')
    assert provenance.code(second) == provenance.code(checkout) and second != first
    assert (first / 'mmattn' / 'a.py').read_text() == '1\n'
    assert (second / 'mmattn' / 'a.py').read_text() == '2\n'
    assert not (second / 'mmattn' / 'old.py').exists()
    (checkout / 'mmattn' / 'a.py').write_text('3\n')
    assert (second / 'mmattn' / 'a.py').read_text() == '2\n'
    # The same code is there once, and nothing half made.
    assert len(list((tmp_path / 'code').iterdir())) == 2
    snapshot.make(tmp_path / 'code', checkout / 'mmattn')
    assert len(list((tmp_path / 'code').iterdir())) == 3


def test_a_snapshot_of_an_installed_package(tmp_path):
    package = tmp_path / 'site' / 'mmattn'
    (package / '__pycache__').mkdir(parents=True)
    (package / 'a.py').write_text('1\n')
    found = snapshot.make(tmp_path / 'code', package)
    assert (found / 'mmattn' / 'a.py').read_text() == '1\n'
    assert not (found / 'mmattn' / '__pycache__').exists()
    assert snapshot.make(tmp_path / 'code', package) == found


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('reproduce_tool', test_local.REPRODUCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    'words, said',
    [
        (['--slurm', 'gpu'], 'not found: sbatch, squeue, srun'),
        (['--cluster', '/no/such.yml'], '/no/such.yml: No such file'),
        (['--gpus-per-run', '99'], 'a run needs 99 of'),
    ],
)
def test_the_tool_says_what_is_wrong_in_a_line(tool, tmp_path, monkeypatch, capsys, words, said):
    path = toy_tables.tables(tmp_path, {'good': None})
    monkeypatch.setenv('PATH', '/nowhere')
    command = ['reproduce.py', 'mine', '--tables', str(path), '--work-dir', str(tmp_path / 'work')]
    monkeypatch.setattr('sys.argv', [*command, '--no-check', '--yes', *words])
    assert tool.main() == 2
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1


def test_local_and_slurm_exclude_each_other(tool, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['reproduce.py', 'cat', '--local', '--slurm', 'gpu'])
    with pytest.raises(SystemExit) as error:
        tool.main()
    assert error.value.code == 2 and 'not allowed with' in capsys.readouterr().err
