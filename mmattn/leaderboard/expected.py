"""What the repository's config of a row says, for a run's record to be compared with."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mmattn.lines import one_line
from mmattn.papers import alternatives
from mmattn.papers.metrics import is_number
from mmattn.papers.plan import expected
from mmattn.runs import plain_config
from mmattn.runs.record import RecordError, resolved

# What differs between two trainings of the same, beside what `record.resolved` leaves out.
NO_CHANGE = re.compile(
    r'(env_cfg|default_hooks\.checkpoint\.(max_keep_ckpts|out_dir)|default_hooks\.record'
    r'|auto_scale_lr\.enable|custom_imports\.allow_failed_imports|test_(dataloader|cfg|evaluator))'
    r'(\..*)?'
)
PER_GPU = 'train_dataloader.batch_size'  # judged by the batch over all processes


@dataclass(frozen=True)
class Expected:
    """What a row's own config says; `length` as ('epoch' or 'iter', how many)."""

    path: str
    config: dict[str, Any]
    batch: int | None
    lr: float | None
    gpus: int | None
    length: tuple[str, int] | None


@cache
def expected_config(path: str, names: tuple[str, ...]) -> Expected:
    """The repository's config of a row with alternatives.

    Raises:
        RecordError: if it cannot be read.
    """
    try:
        try:
            # As data, which is ten times as fast; alternatives and a user's own may be code.
            cfg = None if names else plain_config.load(path)
        except plain_config.PlainConfigError:
            cfg = None
        cfg = expected(path, names) if cfg is None else cfg
    except Exception as error:  # a user's own config may raise anything
        raise RecordError(f"the repository's config cannot be read: {one_line(error)}") from error
    train = cfg.get('train_cfg') or {}
    length = next(
        (
            (unit, train[key])
            for unit, key in (('epoch', 'max_epochs'), ('iter', 'max_iters'))
            if is_number(train.get(key)) and train[key] > 0
        ),
        None,
    )
    sizes = re.search(r'_(\d+)xb(\d+)', Path(path).stem)
    batch = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    if batch is None and sizes:
        batch = int(sizes[1]) * int(sizes[2])
    lr = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('lr')
    gpus = int(sizes[1]) if sizes else None
    return Expected(path, json.loads(resolved(cfg)), batch, lr, gpus, length)


@cache
def fitting(config: str) -> tuple[str, ...]:
    """The names of a row's alternatives, kept, as many runs ask for those of few rows."""
    return tuple(sorted(alternatives.of_row(config)))


@cache
def changed(path: str, names: tuple[str, ...], text: str) -> tuple[str, ...]:
    """The keys in which a config's text is not the repository's config; cached, as the seeds of a
    row have the same text.

    Raises:
        RecordError: for a text that is no config.
    """
    try:
        found = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise RecordError(f'config_text is no JSON: {" ".join(str(error).split())}') from error
    if not isinstance(found, dict):
        raise RecordError('config_text must be an object')
    return tuple(
        difference.key
        for difference in alternatives.differences(expected_config(path, names).config, found)
        if not NO_CHANGE.fullmatch(difference.key)
    )


def refuse(name: str) -> None:
    """For constants that JSON has not; raises ValueError."""
    raise ValueError(f'{name} is no number')
