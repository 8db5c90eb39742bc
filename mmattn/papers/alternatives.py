"""Alternatives: what a row might have been where the evidence is split, each a few lines of config.

`configs/alternatives/<name>.py` is the body of a child config: without `_base_`, merged onto a row
as if it began with `_base_ = ROW`. The tables of `paper_tables.yml` list those that fit their rows.
"""

import difflib
import reprlib
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .tables import PAPERS, Entry, config_root, entries, load

PRETRAINED = 'pretrained'  # the alternative whose runs start from another's checkpoint

# What a run reads of a config; other names are variables of the config's own.
# These are the arguments of mmengine's Runner, which is slow to import.
READ = set(
    """
    self cfg custom_imports model work_dir train_dataloader val_dataloader test_dataloader
    train_cfg val_cfg test_cfg auto_scale_lr optim_wrapper param_scheduler val_evaluator
    test_evaluator default_hooks custom_hooks data_preprocessor load_from resume launcher env_cfg
    log_processor log_level visualizer default_scope randomness experiment_name
    """.split()  # noqa: SIM905
)


class AlternativeError(ValueError):
    """No row, a name that does not fit it, or two that exclude each other."""


@dataclass(frozen=True)
class Alternative:
    """What a table's rows might have been.

    `rows` are globs for the names of the configs, without their folder, that it fits. `changes` and
    `evidence` are sentences for readers; what it changes for the machine is in its file. `gates`:
    it makes other gates, so a network that its rows start from (`pretrained`) has it, too.
    """

    paper: str
    table: int
    name: str
    changes: str
    evidence: str
    rows: tuple[str, ...] = ('*',)
    gates: bool = False

    @property
    def path(self) -> Path:
        """Its file."""
        return folder() / f'{self.name}.py'

    @property
    def configs(self) -> list[str]:
        """The configs of the table that it fits, relative to `config_root()`."""
        found = [entry.config for entry in entries(self.paper, self.table)]
        return [path for path in dict.fromkeys(found) if self.fits(path)]

    def fits(self, config: str) -> bool:
        """Whether its rows are those of a config, by the name of its file."""
        return any(fnmatchcase(Path(config).name, glob) for glob in self.rows)

    def is_of(self, entry: Entry) -> bool:
        """Whether it is an alternative of a row."""
        return (entry.paper, entry.table) == (self.paper, self.table) and self.fits(entry.config)


@dataclass(frozen=True)
class Difference:
    """A key, with dots, that has other values in two configs; `MISSING` where it is not there."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f'{self.key}: {_short(self.before)} -> {_short(self.after)}'


class _Missing:
    def __repr__(self) -> str:
        return 'nothing'


MISSING = _Missing()


def folder() -> Path:
    """Where the alternatives lie, a file each."""
    return config_root() / 'alternatives'


@lru_cache
def listed() -> tuple[Alternative, ...]:
    """The alternatives of all tables, in the papers' order; one of two tables is there twice.

    Raises:
        FileNotFoundError: if one has no file.
    """
    found = []
    for paper in PAPERS:
        for number, table in load(paper).items():
            for item in table.get('alternatives', []):
                rows = item.get('rows', '*')
                rows = (rows,) if isinstance(rows, str) else tuple(rows)
                found.append(Alternative(paper, number, **{**item, 'rows': rows}))
    for alternative in found:
        if not alternative.path.is_file():
            raise FileNotFoundError(
                f'{alternative.paper}, table {alternative.table}: the alternative '
                f'{alternative.name} has no file {alternative.path}'
            )
    return tuple(found)


def of_row(config: str) -> dict[str, Alternative]:
    """The alternatives, by name, of a row's config (relative to `config_root()`), or of one that
    rows start from."""
    tables = {(entry.paper, entry.table) for entry in entries() if entry.config == config}
    own = [item for item in listed() if (item.paper, item.table) in tables and item.fits(config)]
    rows = [entry for entry in entries() if entry.pretrained == config]
    theirs = [item for item in listed() if item.gates and any(map(item.is_of, rows))]
    return {item.name: item for item in (*theirs, *own)}


def of_start(config: str, names: Iterable[str]) -> tuple[str, ...]:
    """Those of a row's alternatives that the network it starts from has, too."""
    known = of_row(config)
    return tuple(sorted(name for name in names if name in known and known[name].gates))


def fitting(entry: Entry) -> set[str]:
    """The names of a row's alternatives; a user's own has `pretrained`, if it says from what."""
    own = entry.near is not None and entry.pretrained is not None
    return {*of_row(entry.config), *([PRETRAINED] if own else [])}


def start_from(cfg: Config, checkpoint: str) -> None:
    """Let a config's model start from a checkpoint, and from nothing else.

    What the config says of the `PretrainedHook` (`fresh_gates`) stays.
    """
    cfg.setdefault('default_hooks', {})
    said = cfg.default_hooks.get('pretrained') or {}
    cfg.default_hooks.pretrained = dict(said, type='PretrainedHook', checkpoint=checkpoint)
    for part in (cfg.model.backbone, cfg.model.get('roi_head', {}).get('shared_head')):
        if part is not None:
            part.init_cfg = None


def row_of(path: str | Path) -> str:
    """The config of a row, or of what rows start from, by any path, relative to `config_root()`.

    Raises:
        AlternativeError: if it is in no table.
    """
    root = config_root().resolve()
    full = Path(path).resolve()
    config = full.relative_to(root).as_posix() if full.is_relative_to(root) else None
    if config is None or config not in {name for entry in entries() for name in entry.configs}:
        raise AlternativeError(
            f'{path} is in no table, and alternatives are for the rows of tables: the configs that '
            f'{" and ".join(f"{root / paper}/paper_tables.yml" for paper in PAPERS)} name'
        )
    return config


def combine(path: str | Path, names: Sequence[str]) -> Config:
    """A row with alternatives. Their order says nothing: two for which it would are refused.

    Args:
        path (str or Path): Of a row's config.
        names (Sequence[str]): Of alternatives that fit the row; without any, the row itself.

    Returns:
        Config: with the file name `combined_name(path, names).py` beside the row's file.

    Raises:
        AlternativeError: if the path is no row, a name is no alternative of it, or two
            alternatives set a key to different values.
    """
    if not names:
        return _read(path, [])
    _check_names(row_of(path), names)
    names = sorted(set(names))
    for pair in combinations(names, 2):
        _check_pair(path, *pair)
    cfg = _read(path, names)
    name = titled(path, names)
    return Config(cfg.to_dict(), cfg_text=cfg.text, filename=name, env_variables=cfg.env_variables)


def combined_name(path: str | Path, names: Iterable[str]) -> str:
    """What a row with alternatives is called: `<row>+<alternative>+...`, by the alphabet."""
    return '+'.join([Path(path).stem, *sorted(set(names))])


def titled(config: str | Path, names: Iterable[str]) -> str:
    """The same with the row's folder: `cat/<row>+<alternative>.py`."""
    return Path(config).with_name(f'{combined_name(config, names)}.py').as_posix()


def differences(before: Any, after: Any, key: str = '') -> list[Difference]:
    """Where two configs differ. A list of another length is one difference, as a whole."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(name for name in after if name not in before)]
        pairs = [(name, before.get(name, MISSING), after.get(name, MISSING)) for name in keys]
    elif (
        isinstance(before, (list, tuple))
        and isinstance(after, (list, tuple))
        and len(before) == len(after)
        and any(isinstance(item, (dict, list, tuple)) for item in before)
    ):
        pairs = list(zip(range(len(before)), before, after, strict=True))
    else:
        return [] if before == after else [Difference(key, before, after)]
    return [
        found
        for name, old, new in pairs
        for found in differences(old, new, f'{key}.{name}' if key else f'{name}')
    ]


def effective(cfg: Config) -> dict[str, Any]:
    """What a run reads of a config, without the config's own variables."""
    return {key: value for key, value in cfg.to_dict().items() if key in READ}


def changes(config: str, names: Sequence[str]) -> list[Difference]:
    """What alternatives change in a row (relative to `config_root()`)."""
    path = config_root() / config
    return differences(effective(_read(path, [])), effective(combine(path, names)))


def render_evidence(paper: str) -> str:
    """What each table of a paper rests on, in Markdown."""
    text = '| Table | Printed, or proven by numbers | By the platform | Open | Checkpoint |\n'
    text += '| --- | --- | --- | --- | --- |\n'
    for number, table in load(paper).items():
        names = sorted({a.name for a in listed() if (a.paper, a.table) == (paper, number)})
        cells = (
            table['proven'],
            table['platform'],
            ', '.join(f'`{name}`' for name in names) or 'nothing',
            f'{table["checkpoint"]}: {table["checkpoint_evidence"]}',
        )
        text += f'| {number} | {" | ".join(cells)} |\n'
    return text


def render_alternatives(paper: str) -> str:
    """A paper's alternatives in Markdown; one that is the same in several tables in one line."""
    lines: dict[tuple[str, str, str, str], list[str]] = {}
    for item in listed():
        if item.paper == paper:
            rows = ', '.join(f'`{glob}`' for glob in item.rows if glob != '*') or 'all'
            cells = (f'`{item.name}`', rows, item.changes, item.evidence)
            lines.setdefault(cells, []).append(str(item.table))
    text = '| Table | Alternative | Rows | What it changes | Evidence |\n'
    text += '| --- | --- | --- | --- | --- |\n'
    for cells, numbers in lines.items():
        text += f'| {", ".join(numbers)} | {" | ".join(cells)} |\n'
    return text


def _check_names(config: str, names: Sequence[str]) -> None:
    fitting = of_row(config)
    allowed = f'allowed: {", ".join(sorted(fitting))}' if fitting else 'it has none'
    for name in names:
        if name in fitting:
            continue
        others = [item for item in listed() if item.name == name]
        if others:
            where = '; '.join(
                f'{", ".join(item.rows)} of {item.paper.upper()} {item.table}' for item in others
            )
            raise AlternativeError(
                f'the alternative {name} is for {where}, not {config} ({allowed})'
            )
        near = difflib.get_close_matches(name, fitting, n=1)
        guess = f'; did you mean {near[0]}?' if near else ''
        raise AlternativeError(f'{config} has no alternative {name!r} ({allowed}){guess}')


def _check_pair(path: str | Path, first: str, second: str) -> None:
    """Two alternatives that go together give the same, whichever is merged first."""
    fault = f'the alternatives {first} and {second} do not go together'
    try:
        one, other = (effective(_read(path, p)) for p in ((second, first), (first, second)))
    except Exception as error:
        row = effective(_read(path, []))
        sets, other_sets = (
            [found.key for found in differences(row, effective(_read(path, [name])))]
            for name in (first, second)
        )
        # a key, or one that the other has something of
        both = {a for a in sets for b in other_sets if f'{b}.'.startswith(f'{a}.')}
        both |= {b for a in sets for b in other_sets if f'{a}.'.startswith(f'{b}.')}
        keys = ', '.join(sorted(both))
        reason = f'both set {keys}' if keys else f'{type(error).__name__}: {error}'
        raise AlternativeError(f'{fault}: {reason}') from error
    for found in differences(one, other):
        raise AlternativeError(
            f'{fault}: they set {found.key} to {_short(found.before)} and to {_short(found.after)}'
        )


def _read(path: str | Path, names: Sequence[str]) -> Config:
    """A config with alternatives, merged in the order given, unchecked."""
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in enumerate(names):
            base, path = Path(path).resolve(), Path(scratch) / f'{number}.py'
            body = (folder() / f'{name}.py').read_text(encoding='utf-8')
            path.write_text(f'_base_ = {str(base)!r}\n{body}', encoding='utf-8')
        return Config.fromfile(path, import_custom_modules=False)


def _short(value: Any) -> str:
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 60
    return shortener.repr(value)
