"""A whole checkpoint is there at any moment, and is the one that is taken."""

import errno
import os

import pytest
import torch
import toy
from mmengine.evaluator import BaseMetric
from mmengine.runner import Runner as MMEngineRunner

from mmattn.runs import atomic, saving
from mmattn.runs.errors import UserError


def test_replaced_or_not_there(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')
    with pytest.raises(KeyboardInterrupt), atomic.replacing(path) as temporary:
        temporary.write_text('half of the n')
        raise KeyboardInterrupt
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['file']
    atomic.write_text(path, 'new')
    assert path.read_text() == 'new' and os.listdir(tmp_path) == ['file']


def checkpoints(folder):
    return sorted(path.name for path in folder.iterdir() if 'pth' in path.name)


def fail_from(monkeypatch, step, error):
    """Lets mmengine's saving fail in the middle of a file, from an iteration on."""
    save = MMEngineRunner.save_checkpoint

    def broken(self, out_dir, filename, *args, **options):
        save(self, out_dir, filename, *args, **options)
        if self.iter + 1 >= step:
            with open(os.path.join(out_dir, filename), 'rb+') as file:
                file.truncate(1000)
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(MMEngineRunner, 'save_checkpoint', broken)


@pytest.mark.parametrize('keep', [1, 2, -1])
def test_keeps_as_many_as_asked(tmp_path, keep):
    cfg = toy.config(tmp_path, iters=4)
    cfg['default_hooks']['checkpoint']['max_keep_ckpts'] = keep
    toy.runner(cfg).train()
    assert checkpoints(tmp_path) == [f'iter_{n}.pth' for n in range(1, 5)][-max(keep, 0) :]
    assert saving.pointed(tmp_path) == str(tmp_path / 'iter_4.pth')


def test_full_disk_costs_the_new_one_alone(tmp_path, monkeypatch):
    cfg = toy.config(tmp_path, iters=4)
    cfg['default_hooks']['checkpoint']['max_keep_ckpts'] = 1
    fail_from(monkeypatch, 3, errno.ENOSPC)
    run, said = toy.runner(cfg), []
    monkeypatch.setattr(run.logger, 'error', said.append)
    with pytest.raises(UserError, match='iter_4.pth was not saved: No space left on device; the'):
        run.train()
    assert checkpoints(tmp_path) == ['iter_2.pth']
    assert said == [
        f'{tmp_path}/iter_3.pth was not saved: No space left on device; '
        f'the last one is {tmp_path}/iter_2.pth; the training goes on'
    ]
    assert saving.pointed(tmp_path) == str(tmp_path / 'iter_2.pth')
    assert saving.last_whole(tmp_path) == (str(tmp_path / 'iter_2.pth'), [])


def test_no_checkpoint_is_lost_at_any_moment(tmp_path, monkeypatch):
    """With one to keep, the old one goes when the pointer is at the new one."""
    seen = []

    def look(path, text):
        seen.append((checkpoints(tmp_path), os.path.basename(text)))
        write(path, text)

    write = saving.write_text
    monkeypatch.setattr(saving, 'write_text', look)
    cfg = toy.config(tmp_path, iters=2)
    cfg['default_hooks']['checkpoint']['max_keep_ckpts'] = 1
    toy.runner(cfg).train()
    assert seen == [
        (['iter_1.pth'], 'iter_1.pth'),
        (['iter_1.pth', 'iter_2.pth'], 'iter_2.pth'),
    ]


def truncated(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def damaged(path):
    with open(path, 'rb+') as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 255]))


def missing(path):
    path.unlink()


@pytest.mark.parametrize('spoil', [truncated, empty, damaged, missing], ids=lambda f: f.__name__)
def test_falls_back_to_the_one_before(tmp_path, spoil):
    names = [tmp_path / f'iter_{number}.pth' for number in (1, 2, 10)]
    for age, path in enumerate(names):
        torch.save(dict(state_dict=dict(a=torch.arange(10000)), meta=dict(iter=age)), path)
        os.utime(path, (age, age))
    (tmp_path / 'last_checkpoint').write_text(str(names[2]))
    assert saving.last_whole(tmp_path) == (str(names[2]), [])
    spoil(names[2])
    assert saving.last_whole(tmp_path) == (str(names[1]), [f'{names[2]} is {spoil.__name__}'])
    truncated(names[1])
    (tmp_path / 'best_iter_2.pth').write_bytes(names[0].read_bytes())  # has no optimizer
    path, faults = saving.last_whole(tmp_path)
    assert path == str(names[0]) and len(faults) == 2
    truncated(names[0])
    with pytest.raises(UserError, match='no checkpoint to resume from: ') as refused:
        saving.last_whole(tmp_path)
    assert all(f'{path} is ' in str(refused.value) for path in names)


def test_pointer_that_is_no_path(tmp_path):
    assert saving.last_whole(tmp_path) == (None, [])
    torch.save({}, tmp_path / 'epoch_3.pth')
    for text in (b'', b'\xff\xfe\0', b'\n'):
        (tmp_path / 'last_checkpoint').write_bytes(text)
        assert saving.last_whole(tmp_path) == (str(tmp_path / 'epoch_3.pth'), [])
    # a folder that was moved, or mounted elsewhere
    torch.save({}, tmp_path / 'other.pth')
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/other.pth')
    assert saving.last_whole(tmp_path) == (str(tmp_path / 'other.pth'), [])


def test_resumes_from_the_one_before_and_says_so(tmp_path, monkeypatch):
    toy.runner(toy.config(tmp_path, iters=2)).train()
    truncated(tmp_path / 'iter_2.pth')
    said = []
    monkeypatch.setattr(
        'mmengine.logging.MMLogger.warning', lambda self, text, *_: said.append(text)
    )
    run = toy.runner(toy.config(tmp_path, iters=3, resume=True))
    run.train()
    assert len(run.train_dataloader.dataset.dataset.read) == 4
    assert f'{tmp_path}/iter_2.pth is truncated; resuming from {tmp_path}/iter_1.pth' in said


def test_each_fault_is_told_once(tmp_path, monkeypatch):
    """`last_checkpoint` holds an absolute path, and --work-dir may be a relative one."""
    (tmp_path / 'iter_2.pth').write_bytes(b'')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_2.pth'))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        saving.last_whole('.')
    assert str(refused.value).count('is empty') == 1


def test_begin_forgets_another_run(tmp_path):
    (tmp_path / 'last_checkpoint').write_text('x.pth')
    (tmp_path / 'iter_1.pth.tmp').write_text('half')
    saving.begin(tmp_path, resumed=True)
    assert os.listdir(tmp_path) == ['last_checkpoint']
    saving.begin(tmp_path, resumed=False)
    assert os.listdir(tmp_path) == ['.run']


def train(folder, iters, **more):
    saving.begin(folder, resumed=more.get('resume', False))
    run = toy.runner(toy.config(folder, iters=iters, **more))
    run.train()
    return run


def test_checkpoints_of_an_earlier_run_are_not_taken(tmp_path, monkeypatch):
    """A run that was killed before it had a checkpoint, in a folder with those of another."""
    train(tmp_path, 3)
    assert saving.last_whole(tmp_path) == (str(tmp_path / 'iter_3.pth'), [])
    (tmp_path / 'last_checkpoint').unlink()
    assert saving.last_whole(tmp_path) == (str(tmp_path / 'iter_3.pth'), []), 'its own'
    saving.begin(tmp_path, resumed=False)
    newest = tmp_path / 'iter_3.pth'
    note = (
        f'{newest} (as are 2 more) is of an earlier training in this folder, '
        f'which --resume {newest} goes on with'
    )
    assert saving.last_whole(tmp_path) == (None, [note])
    said = []
    monkeypatch.setattr(
        'mmengine.logging.MMLogger.warning', lambda self, text, *_: said.append(text)
    )
    run = train(tmp_path, 1, resume=True)
    assert f'{note}; beginning anew' in said
    assert len(run.train_dataloader.dataset.dataset.read) == 2
    # Now it has one, which goes bad.
    assert saving.last_whole(tmp_path) == (str(tmp_path / 'iter_1.pth'), [])
    truncated(tmp_path / 'iter_1.pth')
    with pytest.raises(UserError, match=r'iter_1.pth is truncated; .*iter_3.pth \(as are 1 more\)'):
        saving.last_whole(tmp_path)


def test_all_checkpoints_of_a_resumed_run_are_its_own(tmp_path):
    train(tmp_path, 2)
    train(tmp_path, 3, resume=True)
    truncated(tmp_path / 'iter_3.pth')
    path, faults = saving.last_whole(tmp_path)
    assert path == str(tmp_path / 'iter_2.pth') and len(faults) == 1


def test_a_first_run_may_be_asked_to_resume(tmp_path):
    """As the quickstart does; the next one that is not is another all the same."""
    train(tmp_path, 1, resume=True)
    first = saving.run_of(tmp_path)
    saving.begin(tmp_path, resumed=True)
    assert saving.run_of(tmp_path) == first
    saving.begin(tmp_path, resumed=False)
    assert saving.last_whole(tmp_path)[0] is None


def test_a_folder_of_before_runs_had_names(tmp_path):
    toy.runner(toy.config(tmp_path, iters=1)).train()
    saving.begin(tmp_path, resumed=True)
    assert saving.run_of(tmp_path) is None
    (tmp_path / 'last_checkpoint').unlink()
    assert saving.last_whole(tmp_path) == (str(tmp_path / 'iter_1.pth'), [])
    saving.begin(tmp_path, resumed=False)
    assert saving.last_whole(tmp_path)[0] is None


class Scores(BaseMetric):
    """A metric that takes the values it is given, one a validation."""

    def __init__(self, values):
        super().__init__()
        self.values = iter(values)

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(score=next(self.values))


def validated(folder, values, **more):
    """The config of a training with a validation after each iteration, which has one result."""
    cfg = toy.config(folder, iters=len(values), **more)
    loader = dict(cfg['train_dataloader'], sampler=dict(type='DefaultSampler'))
    cfg['train_cfg']['val_interval'] = 1
    cfg['default_hooks']['checkpoint'].update(save_best='score', rule='greater')
    evaluator = dict(type=Scores, values=values)
    return dict(cfg, val_dataloader=loader, val_cfg={}, val_evaluator=evaluator)


def best(folder):
    return [name for name in checkpoints(folder) if name.startswith('best')]


def test_the_best_one_stays_until_there_is_a_better(tmp_path, monkeypatch):
    seen, save = [], MMEngineRunner.save_checkpoint

    def look(self, out_dir, filename, *args, **options):
        if 'best' in filename:
            seen.append(best(tmp_path))
        save(self, out_dir, filename, *args, **options)

    monkeypatch.setattr(MMEngineRunner, 'save_checkpoint', look)
    toy.runner(validated(tmp_path, [0.1, 0.3, 0.2])).train()
    assert seen == [[], ['best_score_iter_1.pth']]
    assert best(tmp_path) == ['best_score_iter_2.pth']


def test_full_disk_costs_the_new_best_one_alone(tmp_path, monkeypatch):
    save = MMEngineRunner.save_checkpoint

    def full(self, out_dir, filename, *args, **options):
        if filename.startswith('best_score_iter_2'):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(self, out_dir, filename, *args, **options)

    monkeypatch.setattr(MMEngineRunner, 'save_checkpoint', full)
    run, said = toy.runner(validated(tmp_path, [0.1, 0.4, 0.3])), []
    monkeypatch.setattr(run.logger, 'error', said.append)
    run.train()
    message = 'the best checkpoint was not saved: No space left on device; the training goes on'
    assert said == [message]
    # the best of those that are there
    assert best(tmp_path) == ['best_score_iter_3.pth']


def test_a_validation_that_was_cut_off_is_done_again(tmp_path, monkeypatch):
    run = toy.runner(validated(tmp_path, [0.1, 0.3, 0.2]))

    def killed():
        if run.iter == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Scores, 'process', lambda self, *_: (killed(), self.results.append(0)))
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert best(tmp_path) == ['best_score_iter_1.pth']
    monkeypatch.undo()
    again = toy.runner({**validated(tmp_path, [0.3, 0.2, 0]), 'resume': True})
    again.train()
    assert best(tmp_path) == ['best_score_iter_2.pth']


def test_a_named_checkpoint_takes_the_place_of_the_last_one(tmp_path):
    """A restart, or a second --resume, goes on from there until there is a new one."""
    toy.runner(toy.config(tmp_path, iters=3)).train()
    first = tmp_path / 'iter_1.pth'
    run = toy.runner(toy.config(tmp_path, iters=3, resume=True, load_from=str(first)))
    run.train_loop  # noqa: B018  (mmengine builds it where it is asked for)
    run.load_or_resume()
    assert saving.last_whole(tmp_path) == (str(first), [])
