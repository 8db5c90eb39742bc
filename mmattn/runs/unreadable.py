"""Images that cannot be read in the middle of a training: left out, listed, and not too many.

The data workers list them in a file in the work directory, and put the next image in their place,
so that batches keep their size and a resumed training sees the same ones. The training process
counts the list. A test never leaves out an image: its result would be another.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from .errors import UserError
from .hooks import Batch, Outputs

NAME = 'unreadable_images.jsonl'
IN_A_ROW = 10  # more are no accident


def first_readable(
    dataset: BaseDataset, load: Callable[[int], Any], index: int, report: str
) -> Any:
    """The sample at an index, or the first one after it that can be read.

    Args:
        dataset (Dataset): One of OpenMMLab's.
        load (callable): Gives the sample at an index.
        index (int): Where to begin.
        report (str): File in which to note what cannot be read.

    Raises:
        UserError: If that is true of too many in a row.
    """
    for step in range(min(IN_A_ROW, len(dataset))):
        other = (index + step) % len(dataset) if step else index
        try:
            return load(other)
        except Exception as error:
            if not _is_of_loading(error):
                raise
            path, last = _path(dataset, other), error
            _note(report, path, error)
    raise UserError(
        f'{step + 1} images in a row cannot be read, the last of them {path}: {_why(last)}'
    ) from last


def _is_of_loading(error: BaseException) -> bool:
    """Whether a transform that loads something has raised it."""
    trace = error.__traceback__
    while trace is not None:
        if type(trace.tb_frame.f_locals.get('self')).__name__.startswith('Load'):
            return True
        trace = trace.tb_next
    return False


def _path(dataset: BaseDataset, index: int) -> str:
    info = dataset.get_data_info(int(index))
    return str(info.get('img_path', f'sample {int(index)}'))


def _why(error: BaseException) -> str:
    return ' '.join(str(error).split()) or type(error).__name__


def _note(report: str, path: str, error: BaseException) -> None:
    if path in read(report):
        return
    line = json.dumps(dict(path=path, error=f'{type(error).__name__}: {_why(error)}')) + '\n'
    # One write at the end of the file: several workers do not mix their lines.
    file = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def read(report: str | Path) -> dict[str, str]:
    """The images that have been noted, and why they cannot be read.

    Returns:
        dict[str, str]: Errors by path.
    """
    noted = {}
    try:
        lines = Path(report).read_text(errors='replace').splitlines()
    except FileNotFoundError:
        return noted
    for line in lines:
        try:
            entry = json.loads(line)
            noted.setdefault(entry['path'], entry['error'])
        except (ValueError, TypeError, KeyError):
            continue  # cut off, by a full disk say
    return noted


class UnreadableImagesHook(Hook):
    """Tells of images that were left out, and stops the training when there are too many.

    Args:
        report (str): The file in which they are noted.
        limit (int, optional): How many may be. By default one in a thousand, and ten in any case.
    """

    def __init__(self, report: str, limit: int | None = None) -> None:
        self.report, self.limit = report, limit
        self.known: dict[str, str] = {}
        self.size = 0  # of the report when it was read

    def before_train(self, runner: Runner) -> None:
        if runner.iter == 0 and is_main_process():
            Path(self.report).unlink(missing_ok=True)
        if self.limit is None:
            self.limit = max(10, len(runner.train_dataloader.dataset) // 1000)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Batch = None, outputs: Outputs = None
    ) -> None:
        if not is_main_process():
            return
        try:
            size = os.path.getsize(self.report)
        except FileNotFoundError:
            return
        if size == self.size:
            return
        noted = read(self.report)
        for path in noted.keys() - self.known.keys():
            runner.logger.warning(f'left out, as it cannot be read: {path} ({noted[path]})')
        self.known, self.size = noted, size
        if self.limit is not None and len(noted) > self.limit:
            path, why = next(iter(noted.items()))
            raise UserError(
                f'{len(noted)} images cannot be read, more than the {self.limit} allowed '
                f'(--max-unreadable); the first is {path}: {why}; all are in {self.report}'
            )

    def after_train(self, runner: Runner) -> None:
        if self.known and is_main_process():
            runner.logger.warning(
                f'{len(self.known)} images could not be read and were left out, see {self.report}'
            )
