"""Real launchers of real processes: what they end with, and with which weights."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import toy

from mmattn.runs import launch

DIST_TRAIN = Path(__file__).parents[2] / 'tools' / 'dist_train.sh'
pytestmark = pytest.mark.slow


class Training:
    """20 iterations in two processes."""

    def __init__(self, folder, pause=0.0, **more):
        folder.mkdir()
        self.work = folder / 'work'
        kind = dict(dict(epochs=1, interval=100), **more)
        cfg = toy.config(self.work, size=80, **kind)
        cfg['train_dataloader'].update(num_workers=1, persistent_workers=True)
        cfg['train_dataloader']['dataset']['pause'] = pause
        self.config = toy.write(folder / 'run.py', cfg)

    def start(self, count, *options, **environment):
        return subprocess.Popen(
            ['bash', DIST_TRAIN, self.config, str(count), *map(str, options)],
            env=toy.environment(**environment),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def weights(self):
        checkpoint = torch.load((self.work / 'last_checkpoint').read_text(), weights_only=False)
        assert checkpoint['meta']['iter'] == 20
        return checkpoint['state_dict']

    def wait_for_steps(self):
        """Until the training is in its first steps."""
        deadline = time.monotonic() + 120
        while not list(self.work.glob('2*/*.log')) or not self._begun():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)

    def _begun(self):
        return any('Checkpoints will' in path.read_text() for path in self.work.glob('2*/*.log'))


def finish(*processes):
    ends = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], ends


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    training = Training(tmp_path_factory.mktemp('undisturbed') / 'one')
    codes, said = finish(training.start(2))
    assert codes == [0], said
    return training.weights()


def test_two_machines_train_as_one(tmp_path, undisturbed):
    """And go on together when a process of one is killed."""
    training = Training(tmp_path / 'two', pause=0.1, log_level='INFO')
    common = dict(NNODES='2', MASTER_ADDR='127.0.0.1', PORT=str(launch.free_port()))
    nodes = [training.start(1, **common, NODE_RANK=str(rank)) for rank in (0, 1)]
    training.wait_for_steps()
    children = Path(f'/proc/{nodes[1].pid}/task/{nodes[1].pid}/children').read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    codes, said = finish(*nodes)
    assert codes == [0, 0], said
    assert 'process 1 was killed by SIGKILL; restart 1 of 3' in said[1]
    assert toy.same(training.weights(), undisturbed)


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGUSR2])
def test_stopped_by_a_signal_and_resumed(tmp_path, undisturbed, signum):
    training = Training(tmp_path / 'stopped', pause=0.2, log_level='INFO')
    launcher = training.start(2)
    training.wait_for_steps()
    if signum == signal.SIGTERM:
        # to all processes, as a cluster does
        ran = subprocess.run(
            ['ps', '-eww', '-o', 'pid=', '-o', 'args='], capture_output=True, text=True
        )
        for line in ran.stdout.splitlines():
            if str(training.config) in line:
                os.kill(int(line.split()[0]), signum)
    else:
        launcher.send_signal(signum)
    codes, said = finish(launcher)
    assert codes == [75]
    checkpoint = training.work / 'stopped.pth'
    name = signal.Signals(signum).name
    assert said == [f'stopped by {name}; --resume goes on from {checkpoint}\n']
    done = torch.load(checkpoint, weights_only=False)['meta']['iter']
    assert 0 < done < 20
    codes, said = finish(training.start(2, '--resume'))
    assert codes == [0], said
    assert toy.same(training.weights(), undisturbed)


def test_bad_loss_ends_in_one_line(tmp_path):
    training = Training(tmp_path / 'bad')
    options = ['--cfg-options', 'train_dataloader.dataset.bad=(7,)']
    codes, said = finish(training.start(2, *options))
    assert codes == [2]
    assert said[0].startswith('error: loss is nan at iteration ') and said[0].count('\n') == 1
    assert 'images/7.jpg' in said[0] and 'first.1' in said[0]
    codes, said = finish(training.start(2, '--skip-nonfinite', 1, *options))
    assert codes == [0], said


def test_bad_gradient_ends_in_one_line(tmp_path):
    """The processes have the same ones, and so agree; whose batch it was is told."""
    training = Training(tmp_path / 'steep')
    options = ['--cfg-options', 'train_dataloader.dataset.bad=(7,)', 'model.type=ToySteep']
    codes, said = finish(training.start(2, *options))
    assert codes == [2]
    assert said[0].startswith('error: a gradient is not finite at iteration '), said
    assert said[0].count('\n') == 1
    assert 'first those of first.bias, first.weight; images: ' in said[0]
    assert 'images/7.jpg' in said[0]
    codes, said = finish(training.start(2, '--skip-nonfinite', 1, *options))
    assert codes == [0], said


def test_second_training_is_refused_by_name(tmp_path):
    training = Training(tmp_path / 'owned', pause=2, log_level='INFO')
    first = training.start(1)
    training.wait_for_steps()
    codes, said = finish(training.start(1))
    assert codes == [2]
    assert said[0].startswith(f'error: {training.work} is in use by a training (process ')
    assert said[0].count('\n') == 1
    first.send_signal(signal.SIGUSR2)
    assert finish(first)[0] == [75]


FAULTS = """
import os
import toy
from mmengine.registry import MODELS


@MODELS.register_module()
class Faulty(toy.Toy):
    steps = 0

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.steps += 1
        if self.steps > int(os.environ['GOOD_STEPS']) and os.environ['RANK'] == '1':
            raise IndexError('a fault of mine')
        return super().forward(inputs, data_samples, mode)
"""


@pytest.mark.parametrize('steps, code, attempts', [(0, 70, 1), (2, 1, 2)])
def test_a_fault_has_its_traceback_whole(tmp_path, steps, code, attempts):
    """And is not tried again where a restart would only meet it again."""
    (tmp_path / 'faulty.py').write_text(FAULTS)
    training = Training(tmp_path / 'fault')
    text = training.config.read_text().replace("'Toy'", "'Faulty'").replace("'toy']", "'faulty']")
    training.config.write_text(text)
    environment = toy.environment(RESTARTS='1', GOOD_STEPS=str(steps))
    environment['PYTHONPATH'] += os.pathsep + str(tmp_path)
    ran = subprocess.run(
        ['bash', DIST_TRAIN, training.config, '2'],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == code, ran.stderr
    assert ran.stderr.count('Traceback (most recent call last)') == attempts
    assert ran.stderr.count("raise IndexError('a fault of mine')\nIndexError: a fault") == attempts
    assert ran.stderr.count('restart 1 of 1') == attempts - 1


@pytest.mark.skipif(
    subprocess.run(['unshare', '-rm', 'true'], capture_output=True).returncode != 0,
    reason='needs a small file system of its own',
)
def test_full_disk(tmp_path):
    """A real one: what is there stays whole, the training goes on, and its end is an error."""
    training = Training(tmp_path / 'full', pause=0.1, epochs=None, iters=20, interval=4)
    work = training.work
    work.mkdir()
    script = f"""
        mount -t tmpfs -o size=200k none {work}
        (until [ -e {work}/iter_8.pth ]; do sleep 0.05; done; cat /dev/zero >{work}/other) &
        bash {DIST_TRAIN} {training.config} 2
        code=$?
        cp {work}/*.pth {work}/last_checkpoint {tmp_path}
        exit $code
    """
    ran = subprocess.run(
        ['unshare', '-rm', 'bash', '-c', script],
        env=toy.environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout.count('No space left on device; the last one is') == 2
    assert ran.stdout.count('the training goes on') == 2
    errors = [line for line in ran.stderr.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and f'{work}/iter_20.pth was not saved: No space left' in errors[0]
    assert 'Traceback' not in ran.stdout + ran.stderr
    assert (tmp_path / 'last_checkpoint').read_text() == f'{work}/iter_8.pth'
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_4.pth', 'iter_8.pth']
    assert torch.load(tmp_path / 'iter_8.pth', weights_only=False)['meta']['iter'] == 8
