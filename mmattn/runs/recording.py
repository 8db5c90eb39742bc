"""Keeps the record of a training (record.py) while it runs: `record` in the config asks for it.

The first process writes. An evaluation that a kill has cut off is made up for when the training
resumes, so that a record ends the same however often that was.
"""

import math
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, broadcast_object_list, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from . import provenance, record, saving
from .checkpoint import sha256_of
from .errors import Stopped, UserError
from .form import Evaluation, Record

PROGRESS = 20  # seconds between notes of the iteration and the loss


def ask(
    cfg: Config,
    config: str,
    alternatives: list[str],
    seed: int,
    data_root: str | None = None,
    pretrained: str | None = None,
) -> None:
    """Let a training keep a record in its work directory.

    Args:
        config (str): Relative to the folder of configs.
        data_root (str, optional): What stands in the place of `data`.
        pretrained (str, optional): The checkpoint that the backbone starts from.
    """
    origin = None
    if pretrained is not None:
        found = record.find(Path(pretrained).parent)
        origin = dict(
            config=None if found is None else found['config'],
            seed=None if found is None else found['seed'],
            checkpoint_sha256=sha256_of(pretrained),
        )
    cfg.record = dict(
        config=config,
        alternatives=sorted(set(alternatives)),
        seed=seed,
        data_root=data_root,
        pretrained=origin,
    )


class RecordHook(Hook):
    """Writes the record of the training.

    Args:
        asked (dict): What `ask` has put into the config.
    """

    priority = 'LOWEST'

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked, self.noted = asked, time.monotonic()
        # None before the training begins, and in processes but the first.
        self.record: Record | None = None

    def before_train(self, runner: Runner) -> None:
        hosts = all_gather_object(socket.gethostname())
        missed = False
        if is_main_process():
            self._begin(runner, hosts)
            missed = _evaluation_is_due(runner) and not self._evaluated(runner.iter)
        if _agree(missed):
            runner.val_loop.run()

    def _begin(self, runner: Runner, hosts: list[str]) -> None:
        asked, folder = self.asked, Path(runner.work_dir)
        kept = record.find(folder) if runner.cfg.get('resume') else None
        known = kept or record.new(asked['config'], asked['alternatives'], asked['seed'])
        text = record.resolved(runner.cfg, asked.get('data_root'))
        sha = record.digest(text)
        if known['config_sha256'] not in (None, sha):
            raise UserError(
                f'{folder / record.NAME} is of another config than the one to go on with; '
                'choose another work directory, or train without --resume'
            )
        for start in known['starts']:
            if start['outcome'] is None:
                start['outcome'] = 'lost'
        commit, diff = provenance.code()
        processes, loader = get_world_size(), runner.train_dataloader
        batch = loader.batch_size or runner.cfg.train_dataloader.batch_size
        gpus = processes if torch.cuda.is_available() else 0
        data_root = asked.get('data_root') or 'data'
        steps = runner.cfg.optim_wrapper.get('accumulative_counts', 1)
        known.update(
            {
                'config_text': text,
                'config_sha256': sha,
                'commit': commit,
                'diff_sha256': diff,
                'versions': provenance.versions(),
                'data_sha256': provenance.data(_datasets(runner), data_root),
                'machines': sorted({*known['machines'], *hosts}),
                'gpus': gpus,
                'processes': processes,
                'batch': batch * processes * steps,
                'lr': _rate(runner, batch * processes),
                'pretrained': asked.get('pretrained'),
                # What came after the checkpoint that the training goes on from comes again.
                'evaluations': [e for e in known['evaluations'] if e['iter'] <= runner.iter],
                'final': None,
                'checkpoint': None,
                'best_checkpoint': None,
                'state': 'running',
            }
        )
        resumed = Path(runner._load_from).name if runner.iter and runner._load_from else None
        known['starts'].append(record.start(socket.gethostname(), os.getpid(), resumed))
        record.write(folder, known)
        self.record = known

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if self.record is None or time.monotonic() - self.noted < PROGRESS:
            return
        loss = outputs.get('loss') if isinstance(outputs, dict) else None
        self.record['progress'] = dict(
            epoch=runner.epoch,
            iter=runner.iter + 1,
            max_iters=runner.max_iters,
            loss=None if loss is None else float(loss),
            at=time.time(),
        )
        self.noted = time.monotonic()
        self._write(runner, self.record)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        # EvaluateBeforeTraining has its own file.
        if self.record is None or not runner.iter or self._evaluated(runner.iter):
            return
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        self.record['evaluations'].append(
            dict(epoch=runner.epoch, iter=runner.iter, at=time.time(), metrics={**metrics})
        )
        self._write(runner, self.record)

    def after_train(self, runner: Runner) -> None:
        """A result belongs to a training, also where the config evaluates by another command."""
        missed = runner.val_loop is not None and is_main_process()
        if _agree(missed and not self._evaluated(runner.iter)):
            runner.val_loop.run()

    def finish(self, runner: Runner) -> None:
        """The training has come to its end."""
        if self.record is None:
            return
        last = saving.pointed(runner.work_dir)
        if last is None or runner.iter < runner.max_iters:
            reason = 'saved no checkpoint' if last is None else 'ended before its last step'
            raise UserError(f'the training {reason}, so it has no result')
        done = self.record['evaluations']
        if done:
            best = _best(done, _best_key(runner, done))
            self.record['final'] = dict(
                last=done[-1]['metrics'], best=best['metrics'], best_epoch=best['epoch']
            )
        self.record.pop('progress', None)
        self.record['checkpoint'] = provenance.of_checkpoint(last)
        kept = _best_checkpoint(runner)
        self.record['best_checkpoint'] = provenance.of_checkpoint(kept) if kept else None
        record.end(self.record, 'done')
        record.write(runner.work_dir, self.record)

    def cut_off(self, runner: Runner, outcome: str, message: str | None) -> None:
        """The training has ended before its end."""
        if self.record is not None:
            record.end(self.record, outcome, message)
            self._write(runner, self.record)

    def _evaluated(self, iteration: int) -> bool:
        done = [] if self.record is None else self.record['evaluations']
        return any(found['iter'] == iteration for found in done)

    def _write(self, runner: Runner, known: Record) -> None:
        try:
            record.write(runner.work_dir, known)
        except OSError as error:  # what it says is written the next time, as a whole
            runner.logger.error(f'{record.NAME} was not written: {error.strerror}')


@contextmanager
def kept(runner: Runner) -> Iterator[None]:
    """Notes in the runner's record, if it keeps one, how the training inside ends."""
    hook = next((hook for hook in runner.hooks if isinstance(hook, RecordHook)), None)
    try:
        yield
        if hook is not None:
            hook.finish(runner)
    except (Stopped, KeyboardInterrupt):
        if hook is not None:
            hook.cut_off(runner, 'stopped', None)
        raise
    except Exception as error:
        if hook is not None:
            text = ' '.join(str(error).split())
            hook.cut_off(runner, 'failed', f'{type(error).__name__}: {text}'[:1000])
        raise


def _agree(choice: bool) -> bool:
    """The first process's choice, in all."""
    choices = [choice]
    broadcast_object_list(choices)
    return choices[0]


def _evaluation_is_due(runner: Runner) -> bool:
    """Whether the training that resumes has just reached a point of evaluation."""
    loop = runner.train_loop
    if runner.val_loop is None or not runner.iter:
        return False
    if isinstance(loop, EpochBasedTrainLoop):
        if runner.iter != runner.epoch * len(loop.dataloader):
            return False
        now, last = runner.epoch, runner.max_epochs
    else:
        now, last = runner.iter, runner.max_iters
    loop._decide_current_val_interval()
    return now >= loop.val_begin and (now % loop.val_interval == 0 or now == last)


def _datasets(runner: Runner) -> list[Any]:
    loops = [runner.train_loop, *([runner.val_loop] if runner.val_loop else [])]
    return [loop.dataloader.dataset for loop in loops]


def _rate(runner: Runner, batch: int) -> float | None:
    """The optimiser's learning rate, as scaled by `auto_scale_lr`, before schedules."""
    rate = runner.cfg.optim_wrapper.get('optimizer', {}).get('lr')
    scale = runner.cfg.get('auto_scale_lr') or {}
    if rate is not None and scale.get('enable') and scale.get('base_batch_size'):
        rate *= batch / scale['base_batch_size']
    return rate


def _best_checkpoint(runner: Runner) -> str | None:
    """The file of the first metric whose best checkpoint the config keeps, if there is one."""
    info = runner.message_hub.runtime_info
    paths = [info[key] for key in info if key.startswith('best_ckpt') and info[key]]
    return next((path for path in paths if Path(path).is_file()), None)


def _best(evaluations: Sequence[Evaluation], key: str | None) -> Evaluation:
    """The evaluation with most of a metric, the first of several."""

    def reached(evaluation: Evaluation) -> float:
        value = evaluation['metrics'].get(key) if key is not None else None
        return float('-inf') if value is None or math.isnan(value) else value

    return max(evaluations, key=reached)


def _best_key(runner: Runner, evaluations: Sequence[Evaluation]) -> str | None:
    """The metric whose best checkpoint the config keeps, or the evaluator's first."""
    hook = (runner.cfg.get('default_hooks') or {}).get('checkpoint') or {}
    key, names = hook.get('save_best'), list(evaluations[0]['metrics'])
    key = key[0] if isinstance(key, list) else key
    return key if key in names else next(iter(names), None)
