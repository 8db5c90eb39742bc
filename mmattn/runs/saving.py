"""Checkpoints that are whole or not there, and finding the last one that is.

A file is written under another name, synced and renamed; `last_checkpoint` follows, and only then
is an outdated one removed. So a whole checkpoint is there at any moment, whatever ends the process,
and a full disk costs the new one alone.
"""

import errno
import os
import time
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import Hook
from mmengine.runner import Runner

from . import checkpoint
from .atomic import TEMPORARY, write_text
from .errors import UserError

POINTER = 'last_checkpoint'
RUN = '.run'  # whose checkpoints a folder's new ones are: each carries it as meta['run']
STOPPED = 'stopped.pth'  # one at most, whatever the schedule counts in


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """Whether an error is that of a full disk or a spent quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's, in an order that leaves a whole checkpoint at every moment.

    If the disk is full, the training goes on without the new checkpoint, and says so; only at its
    end that is an error.
    """

    saved_iter: int | None = None
    last_ckpt: str | None

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        kept = [*self.keep_ckpt_ids] if self.max_keep_ckpts > 0 else []
        outdated = []
        if self.max_keep_ckpts > 0 and step not in kept[-1:]:
            outdated = kept[: len(kept) + 1 - self.max_keep_ckpts]
            self.keep_ckpt_ids.append(step)  # which drops the first of a full queue
            runner.message_hub.update_info('keep_ckpt_ids', [*self.keep_ckpt_ids])
        name, last = self.filename_tmpl.format(step), self.last_ckpt
        self.last_ckpt = self._path(name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        try:
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if is_main_process():
                write_text(Path(runner.work_dir) / POINTER, self.last_ckpt)
        except OSError as error:
            if not is_full(error):
                raise
            self.last_ckpt = last
            if self.max_keep_ckpts > 0:
                self.keep_ckpt_ids.clear()
                self.keep_ckpt_ids.extend(kept)
            message = f'{self._path(name)} was not saved: {error.strerror}; {self._remaining(last)}'
            if meta['iter'] >= runner.max_iters:
                raise UserError(message) from error
            runner.logger.error(f'{message}; the training goes on')
            return
        self.saved_iter = meta['iter']
        if is_main_process():
            for path in map(self._path, map(self.filename_tmpl.format, outdated)):
                self._remove(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        # mmengine's removes the best one so far and then saves the better one. Here it knows of
        # none to remove, and the old one goes when the new one is there.
        before, info = self._best_paths(), runner.message_hub.runtime_info
        known = {key: value for key, value in info.items() if key.startswith('best_')}
        self._set_best_paths(dict.fromkeys(before))
        try:
            super()._save_best_checkpoint(runner, metrics)
        except OSError as error:
            if not is_full(error):
                raise
            self._set_best_paths(before)
            for key in [key for key in info if key.startswith('best_')]:
                info.pop(key)
            info.update(known)
            message = f'the best checkpoint was not saved: {error.strerror}'
            if runner.iter >= runner.max_iters:
                raise UserError(message) from error
            runner.logger.error(f'{message}; the training goes on')
            return
        after = {key: path or before[key] for key, path in self._best_paths().items()}
        self._set_best_paths(after)
        if is_main_process():
            for path in {path for path in before.values() if path} - {*after.values()}:
                self._remove(path)

    def _best_paths(self) -> dict[str, str | None]:
        """The best checkpoint of each metric that is watched, None where there is none yet."""
        if not self.save_best:
            return {}
        if len(self.key_indicators) == 1:
            return {'': self.best_ckpt_path}
        return dict(self.best_ckpt_path_dict)

    def _set_best_paths(self, paths: dict[str, str | None]) -> None:
        if '' in paths:
            self.best_ckpt_path = paths['']
        elif paths:
            self.best_ckpt_path_dict = paths

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)  # DeepSpeed's checkpoints are folders

    def _path(self, name: str) -> str:
        return self.file_backend.join_path(self.out_dir, name)

    @staticmethod
    def _remaining(last: str | None) -> str:
        return f'the last one is {last}' if last else 'there is none yet'


def with_whole_checkpoints(
    hooks: dict[str, Hook | dict[str, Any]] | None,
) -> dict[str, Hook | dict[str, Any]]:
    """The default hooks of a config with our checkpoint hook in the place of mmengine's."""
    hooks = dict(hooks or {})
    checkpoint = hooks.get('checkpoint', dict(type='CheckpointHook'))
    if isinstance(checkpoint, dict) and checkpoint.get('type') in (
        'CheckpointHook',
        MMEngineCheckpointHook,
    ):
        hooks['checkpoint'] = {**checkpoint, 'type': CheckpointHook}
    return hooks


def _hook(runner: Runner) -> CheckpointHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)


def is_saved(runner: Runner) -> bool:
    """Whether the last checkpoint holds the present state."""
    hook = _hook(runner)
    return hook is not None and hook.saved_iter == runner.iter


def save_stopped(runner: Runner) -> str | None:
    """Saves the state after this training step, for --resume.

    Returns:
        str, optional: The path of the checkpoint, or None if the disk is full.
    """
    hook = _hook(runner)
    folder = runner.work_dir if hook is None else hook.out_dir
    path = os.path.join(folder, STOPPED)
    try:
        runner.save_checkpoint(
            folder,
            STOPPED,
            meta=dict(epoch=runner.epoch, iter=runner.iter + 1),
            by_epoch=False,
            backend_args=None if hook is None else hook.backend_args,
        )
        if is_main_process():
            write_text(Path(runner.work_dir) / POINTER, path)
    except OSError as error:
        if not is_full(error):
            raise
        runner.logger.error(f'{path} was not saved: {error.strerror}')
        return None
    return path


def begin(work_dir: str | Path, resumed: bool) -> None:
    """Clears what an earlier run that was killed, or is not to be resumed, left in a folder.

    Its checkpoints stay; by the new run's name, which is noted here, they are known as another's.
    """
    folder = Path(work_dir)
    for path in folder.glob(f'*.pth{TEMPORARY}'):
        path.unlink(missing_ok=True)
    if not resumed or not (pointed(work_dir) or any(_written(folder))):
        # Or a restart of this training would go on with the other.
        (folder / POINTER).unlink(missing_ok=True)
        name = f'{time.strftime("%Y-%m-%d %H:%M:%S")} {uuid.uuid4().hex[:8]}'
        write_text(folder / RUN, name)


def run_of(work_dir: str | Path) -> str | None:
    """The name of the run that has begun in a folder last, or None if none was noted."""
    return _text(Path(work_dir) / RUN)


def pointed(work_dir: str | Path) -> str | None:
    """What `last_checkpoint` says, or None."""
    return _text(Path(work_dir) / POINTER)


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def fault(path: str | Path) -> str | None:
    """What is wrong with a checkpoint: a word or two, or None if it is whole.

    Nothing of it is run: the file's own checksums are compared.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return 'damaged' if file.testzip() else None
    except FileNotFoundError:
        return 'missing'
    except (OSError, zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, EOFError) as error:
        if os.path.isfile(path) and not os.path.getsize(path):
            return 'empty'
        return 'truncated' if isinstance(error, zipfile.BadZipFile) else f'unreadable ({error})'


def last_whole(work_dir: str | Path) -> tuple[str | None, list[str]]:
    """The last checkpoint of a folder's run that is whole.

    `last_checkpoint` comes first, then those that a training writes, the newest first; but none of
    a training that was there before this one began.

    Returns:
        tuple[str | None, list[str]]: Its path, None if this run has saved none; and what is wrong
        with those that were passed over, a phrase each.

    Raises:
        UserError: If this run has checkpoints, and none is whole.
    """
    folder = Path(work_dir)
    last, run = pointed(work_dir), run_of(work_dir)
    faults, others = [], []
    if last is not None:
        # As it was written, or beside it if the folder has been moved since.
        moved = folder / Path(last).name
        last = last if os.path.exists(last) or not moved.exists() else str(moved)
        wrong = None if '://' in last else fault(last)
        if wrong is None:
            return last, faults
        faults.append(f'{last} is {wrong}')
    for path in _written(folder):
        if last is not None and os.path.realpath(path) == os.path.realpath(last):
            continue
        wrong = fault(path)
        if wrong is None and run is not None and _run_in(path) != run:
            others.append(path)
        elif wrong is None:
            return path, faults + _passed_over(others)
        else:
            faults.append(f'{path} is {wrong}')
    passed_over = _passed_over(others)
    if faults:
        raise UserError(f'no checkpoint to resume from: {"; ".join(faults + passed_over)}')
    return None, passed_over


def _written(folder: Path) -> Iterator[str]:
    """What trainings have saved in a folder but for the best, which lack an optimizer's state."""
    patterns = ('epoch_*.pth', 'iter_*.pth', STOPPED)
    paths = [path for pattern in patterns for path in folder.glob(pattern)]
    return map(str, sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True))


def _run_in(path: str) -> str | None:
    try:
        return checkpoint.load_meta(path).get('run')
    except (UserError, OSError, ValueError):
        return None  # not ours at any rate; whoever loads it will hear what is wrong


def _passed_over(paths: Sequence[str]) -> list[str]:
    """Of the newest alone: where there is one, there may be a hundred."""
    if not paths:
        return []
    more = f' (as are {len(paths) - 1} more)' if len(paths) > 1 else ''
    return [
        f'{paths[0]}{more} is of an earlier training in this folder, '
        f'which --resume {paths[0]} goes on with'
    ]
