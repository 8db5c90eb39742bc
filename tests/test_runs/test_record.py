"""The record of a run: its form, and what a training writes into it."""

import json
import signal
from unittest import mock

import pytest
import torch
import toy
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS

from mmattn.papers import config_root
from mmattn.papers.alternatives import combine
from mmattn.runs import checkpoint, provenance, record, recording
from mmattn.runs.errors import Stopped, UserError
from mmattn.runs.signals import request

CONFIG = 'cat/resnet50_1xb128_cifar100.py'


@METRICS.register_module(name='ToyMetric', force=True)
class Score(BaseMetric):
    """The mean of what the model says, which the weights decide."""

    def process(self, data_batch, data_samples):
        self.results += [float(value) for value in data_samples]

    def compute_metrics(self, results):
        return dict(score=sum(results) / len(results))


@DATASETS.register_module(name='StillDigits', force=True)
class Still(toy.Digits):
    """To evaluate on: the same inputs every time."""

    def __getitem__(self, index):
        inputs = torch.full((4,), index / self.size)
        return dict(inputs=inputs, data_samples=toy.Sample(index))


def config(folder, resume=False, by_epoch=True, **more):
    loader = dict(
        batch_size=2,
        num_workers=0,
        dataset=dict(type='StillDigits', size=4),
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    cfg = toy.config(
        folder,
        epochs=3 if by_epoch else None,
        iters=None if by_epoch else 15,
        interval=1 if by_epoch else 5,
        val_dataloader=loader,
        val_evaluator=dict(type='ToyMetric'),
        val_cfg=dict(),
        resume=resume,
        **more,
    )
    if not by_epoch:
        cfg['train_cfg']['val_interval'] = 5
    cfg = Config(cfg)
    recording.ask(cfg, CONFIG, [], 1)
    return cfg


def train(folder, **options):
    runner = toy.runner(config(folder, **options).to_dict())
    runner.train()
    return runner


def test_a_training_writes_what_came_out(tmp_path):
    runner = train(tmp_path)
    found = record.read(tmp_path)
    assert found['state'] == 'done'
    assert [e['iter'] for e in found['evaluations']] == [5, 10, 15]
    assert [e['epoch'] for e in found['evaluations']] == [1, 2, 3]
    assert found['final']['last'] == found['evaluations'][-1]['metrics']
    assert found['final']['best']['score'] == max(
        e['metrics']['score'] for e in found['evaluations']
    )
    assert found['batch'] == 2 and found['processes'] == 1 and found['lr'] == 0.05
    assert [start['outcome'] for start in found['starts']] == ['done']
    assert found['checkpoint']['name'] == 'epoch_3.pth'
    assert found['checkpoint']['sha256'] == checkpoint.sha256_of(tmp_path / 'epoch_3.pth')
    assert found['checkpoint']['weights_sha256'] == provenance.weights(tmp_path / 'epoch_3.pth')
    assert found['best_checkpoint'] is None
    assert record.digest(record.resolved(runner.cfg)) == found['config_sha256']


def test_the_best_checkpoint_is_hashed_where_one_is_kept(tmp_path):
    cfg = config(tmp_path)
    cfg.default_hooks.checkpoint.update(save_best='score', rule='less', max_keep_ckpts=1)
    toy.runner(cfg.to_dict()).train()
    found = record.read(tmp_path)
    (best,) = tmp_path.glob('best_score_*.pth')
    assert found['best_checkpoint'] == provenance.of_checkpoint(best)
    assert found['checkpoint']['name'] == 'epoch_3.pth'


@pytest.mark.parametrize('by_epoch', [True, False], ids=['epochs', 'iterations'])
@pytest.mark.parametrize('at', ['step', 'evaluation', 'last evaluation'])
def test_a_training_that_is_cut_off_ends_with_the_same_record(tmp_path, at, by_epoch):
    """At each of the points the process goes without a word, as after kill -9."""
    whole = tmp_path / 'whole'
    train(whole, by_epoch=by_epoch)

    class Gone(BaseException):
        pass

    runner = toy.runner(config(tmp_path / 'cut', by_epoch=by_epoch).to_dict())
    if at == 'step':
        step, calls = type(runner.model).train_step, []

        def dying(self, *args, **kwargs):
            calls.append(1)
            if len(calls) == 8:
                raise Gone
            return step(self, *args, **kwargs)

        with mock.patch.object(type(runner.model), 'train_step', dying), pytest.raises(Gone):
            runner.train()
    else:
        iteration = 10 if at == 'evaluation' else 15
        evaluate = Score.compute_metrics

        def dying(self, results):
            if runner.iter == iteration:
                raise Gone
            return evaluate(self, results)

        with mock.patch.object(Score, 'compute_metrics', dying), pytest.raises(Gone):
            runner.train()
    assert record.read(tmp_path / 'cut')['state'] == 'running'
    train(tmp_path / 'cut', resume=True, by_epoch=by_epoch)
    one, other = record.read(whole), record.read(tmp_path / 'cut')
    assert [start['outcome'] for start in other['starts']] == ['lost', 'done']
    for key in ('final', 'config_sha256', 'state'):
        assert one[key] == other[key], key
    assert [e['metrics'] for e in one['evaluations']] == [
        e['metrics'] for e in other['evaluations']
    ]
    assert one['checkpoint']['weights_sha256'] == other['checkpoint']['weights_sha256']


def test_a_config_that_does_not_evaluate_is_evaluated_at_its_end(tmp_path):
    cfg = config(tmp_path)
    cfg.train_cfg.val_begin = 9
    toy.runner(cfg.to_dict()).train()
    found = record.read(tmp_path)
    assert [e['iter'] for e in found['evaluations']] == [15] and found['final']['last']


def test_a_stop_and_a_fault_are_noted(tmp_path):
    runner = toy.runner(config(tmp_path).to_dict())
    with request.heard():
        request.deferred, request.signum = True, signal.SIGTERM
        with pytest.raises(Stopped):
            runner.train()
    request.__init__()
    found = record.read(tmp_path)
    assert found['state'] == 'stopped' and found['starts'][-1]['outcome'] == 'stopped'
    runner = toy.runner(config(tmp_path, resume=True).to_dict())
    with (
        mock.patch.object(Score, 'compute_metrics', side_effect=RuntimeError('no\nluck')),
        pytest.raises(RuntimeError),
    ):
        runner.train()
    found = record.read(tmp_path)
    assert found['state'] == 'failed'
    assert found['starts'][-1]['message'] == 'RuntimeError: no luck'
    assert found['starts'][-1]['resumed_from'] == 'stopped.pth'


def test_another_config_does_not_go_on_with_a_record(tmp_path):
    train(tmp_path)
    done = record.read(tmp_path)
    with pytest.raises(UserError, match='another config'):
        train(tmp_path, resume=True, env_cfg=dict(cudnn_benchmark=True))
    assert record.read(tmp_path) == done  # which is not said to have failed


@pytest.mark.parametrize('lost', [None, float('nan')])
def test_an_evaluation_without_a_number_is_not_the_best(lost):
    """A record that was read again has None for what was no number."""
    metrics = [{'a': lost, 'b': 1.0}, {'a': 0.2}, {'a': 0.5}, {}, {'a': lost}]
    done = [dict(epoch=n, iter=n, at=0.0, metrics=each) for n, each in enumerate(metrics)]
    assert recording._best(done, 'a')['epoch'] == 2
    assert recording._best(done, None)['epoch'] == 0


def test_a_full_disk_costs_no_training(tmp_path):
    runner = toy.runner(config(tmp_path).to_dict())
    write, calls = record.write, []

    def full(folder, found):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, 'No space left on device')
        write(folder, found)

    with mock.patch.object(record, 'write', full):
        runner.train()
    assert [e['iter'] for e in record.read(tmp_path)['evaluations']] == [5, 10, 15]


def test_resolved_is_the_same_wherever_a_run_is(tmp_path):
    cfg = combine(config_root() / CONFIG, [])
    expected = record.resolved(cfg)
    cfg.work_dir, cfg.launcher, cfg.randomness = 'x', 'pytorch', dict(seed=3)
    cfg.train_dataloader.num_workers = 9
    cfg.train_dataloader.dataset.data_root = '/elsewhere/cifar100'
    before = json.loads(expected)['train_dataloader']['dataset']['data_root']
    cfg.train_dataloader.dataset.data_root = before.replace('data', '/elsewhere', 1)
    cfg.resume, cfg.load_from = True, 'x/epoch_1.pth'
    assert record.resolved(cfg, '/elsewhere') == expected
    cfg.train_dataloader.batch_size = 9
    assert record.resolved(cfg, '/elsewhere') != expected
    cfg = combine(config_root() / CONFIG, [])
    cfg.load_from = 'other.pth'
    assert record.resolved(cfg) != expected


def broken(**changes):
    return {**record.new(CONFIG, [], 0), **changes}


@pytest.mark.parametrize(
    'text, message',
    [
        ('', 'Expecting value'),
        (json.dumps(record.new(CONFIG, [], 0))[:-20], 'no record'),
        ('[]', 'must have the keys'),
        ('{"a": NaN}', 'NaN is no number'),
        (json.dumps(broken(version=2)), 'version must be 1'),
        (json.dumps(broken(more=1)), 'must have the keys'),
        (json.dumps(broken(seed='0')), "seed must be of int, got '0'"),
        (json.dumps(broken(seed=True)), 'seed must be of int, got True'),
        (json.dumps(broken(state='fine')), "state must be one of .*'done'"),
        (json.dumps(broken(config_text='a', config_sha256='b')), 'not the hash'),
        (json.dumps(broken(state='done')), 'without a config'),
        (json.dumps(broken(starts=[{}])), 'a start must have'),
        (
            json.dumps(broken(evaluations=[dict(epoch=1, iter=1, at=0, metrics=dict(a='b'))])),
            'the metric .a. must be a number',
        ),
    ],
)
def test_what_is_no_record_is_named(tmp_path, text, message):
    (tmp_path / record.NAME).write_text(text)
    with pytest.raises(record.RecordError, match=message) as error:
        record.read(tmp_path)
    assert str(tmp_path / record.NAME) in str(error.value) and '\n' not in str(error.value)


def test_numbers_that_are_none_are_none(tmp_path):
    nan = dict(epoch=1, iter=1, at=0, metrics=dict(a=float('nan')))
    record.write(tmp_path, broken(evaluations=[nan]))
    assert record.read(tmp_path)['evaluations'][0]['metrics'] == dict(a=None)
    with pytest.raises(FileNotFoundError):
        record.read(tmp_path / 'nowhere')
    assert record.find(tmp_path / 'nowhere') is None
