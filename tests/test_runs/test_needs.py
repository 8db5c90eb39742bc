"""What a plan takes: trials of its models, and room on the disk."""

import json

import pytest
import toy
import toy_tables
from mmengine.config import Config
from test_local import pretend, starts  # noqa: F401

from mmattn.papers import plan
from mmattn.runs import measure, needs, record
from mmattn.runs.errors import UserError


def trial(cfg):
    """What a trial of a config finds."""
    cfg = Config(cfg)
    path = f'{cfg.work_dir}/trial.json'
    measure.ask(cfg, path)
    with pytest.raises(measure.Measured):
        toy.runner(cfg.to_dict()).train()
    return measure.read(path)


def validated(tmp_path, **options):
    """A toy with three epochs of a hundred steps and something to validate on."""
    path = toy_tables.config(tmp_path, 'row')
    cfg = Config.fromfile(path, import_custom_modules=False)
    cfg.train_dataloader.dataset.update(size=200, **options)
    cfg.work_dir = str(tmp_path / 'trial')
    return cfg.to_dict()


def test_a_trial_times_what_a_training_does(tmp_path):
    found = trial(validated(tmp_path, pause=0.005))
    assert 0.01 <= found['iteration'] < 0.5  # two samples
    assert (found['iterations'], found['evaluations'], found['processes']) == (300, 3, 1)
    assert found['evaluation'] > 0 and found['device'] == 'cpu'
    # 25 weights and their momentum.
    assert 2 * 25 * 4 <= found['state_bytes'] < 2 * 25 * 4 + 200
    expected = 300 * found['iteration'] + 3 * found['evaluation']
    assert measure.process_seconds(found) == pytest.approx(expected)
    # It has ended soon, and left no checkpoint.
    assert not list((tmp_path / 'trial').rglob('*.pth'))


def test_a_trial_ends_after_some_time(tmp_path, monkeypatch):
    monkeypatch.setattr(measure.MeasureHook.__init__, '__defaults__', (0.2,))
    read = []
    monkeypatch.setattr(
        measure.MeasureHook,
        'after_train_epoch',
        lambda *args: read.append('an epoch'),
        raising=False,
    )
    assert trial(validated(tmp_path, pause=0.03))['iteration'] > 0.05
    assert not read


def test_a_training_that_is_shorter_than_a_trial(tmp_path):
    cfg = validated(tmp_path)
    cfg['train_dataloader']['dataset']['size'] = 2
    found = trial(cfg)
    assert found['iterations'] == 3 and found['iteration'] > 0


@pytest.mark.parametrize('text', ['', '{', '[]', '{"iteration": 1}', '{"iteration": "1"}'])
def test_what_is_no_trial(tmp_path, text):
    (tmp_path / 'a.json').write_text(text)
    assert measure.read(tmp_path / 'a.json') is None
    assert measure.read(tmp_path / 'none.json') is None


def test_the_plans_time_by_trials(pretend):  # noqa: F811
    driver = pretend({'good': None, 'good_one': 'good', 'bad': None})
    runs = [job.run for job in driver.jobs.values()]
    assert needs.estimate(runs, driver.work_dir, 'cpu', 1) == (0, runs)
    for run in runs[:2]:
        needs.try_out(run, driver, 1)
    # 100 steps of half a second and two evaluations, for two of three.
    assert needs.estimate(runs, driver.work_dir, 'cpu', 1) == (120, [runs[2]])
    # Another GPU, or another number of them, is another thing.
    assert needs.estimate(runs, driver.work_dir, 'H100', 1)[0] == 0
    assert needs.estimate(runs, driver.work_dir, 'cpu', 2)[0] == 0
    with pytest.raises(UserError, match='trial of mine/bad.py ended with exit code 1: boom'):
        needs.try_out(runs[2], driver, 1)
    # Nothing of it is a run.
    assert not any(record.find(run.folder(driver.work_dir)) for run in runs)
    slots = driver.slots.take(2, 'all')
    with pytest.raises(UserError, match='no cpu is free'):
        needs.try_out(runs[0], driver, 1)
    assert len(slots) == 2


def test_what_is_done_takes_nothing(pretend):  # noqa: F811
    driver = pretend({'good': None})
    (run,) = [job.run for job in driver.jobs.values()]
    driver.drive()
    assert needs.estimate([run], driver.work_dir) == (0, [])
    assert needs.disk([run], driver.work_dir)[0] == 0


def test_a_run_takes_what_another_seed_took(pretend):  # noqa: F811
    driver = pretend({'good': None})
    (run,) = [job.run for job in driver.jobs.values()]
    driver.drive()
    found = record.read(run.folder(driver.work_dir))
    start = dict(host='a', pid=1, resumed_from=None, outcome='done', message=None)
    found['starts'] = [dict(start, at=0, ended=100), dict(start, at=200, ended=250)]
    found['processes'] = 4
    record.write(run.folder(driver.work_dir), found)
    other = plan.replace(run, seed=1)
    assert needs.estimate([run, other], driver.work_dir) == (600, [])


@pytest.mark.parametrize(
    'hook, epochs, kept',
    [
        (dict(interval=1, max_keep_ckpts=3), 90, 5),
        (dict(interval=10), 90, 11),
        (dict(interval=1, max_keep_ckpts=3), 2, 4),
        (dict(interval=1, max_keep_ckpts=1, save_best='accuracy/top1'), 90, 4),
        (dict(interval=-1), 90, 3),
    ],
)
def test_checkpoints_kept(hook, epochs, kept):
    cfg = Config(dict(default_hooks=dict(checkpoint=hook), train_cfg=dict(max_epochs=epochs)))
    assert needs.checkpoints_kept(cfg) == kept


def test_room_on_the_disk(tmp_path):
    """As much as the runs write in the end; a second look builds no model."""
    path = toy_tables.tables(tmp_path, {'base': None, 'one': None})
    runs, work = plan.make('mine', [], seeds=2, files=[path]), tmp_path / 'work'
    wanted, free = needs.disk(runs, work)
    # Weights and momentum; three of three are kept, and two more may be there.
    assert wanted == 4 * (needs.LOGS + 5 * 2 * 25 * 4)
    assert free > 0
    assert len(json.loads((work / needs.FOLDER / needs.SIZES).read_text())) == 2
    folder = runs[0].folder(work)
    folder.mkdir(parents=True)
    (folder / 'epoch_1.pth').write_bytes(b'x' * 200)
    assert needs.disk(runs, work)[0] == wanted - 200
