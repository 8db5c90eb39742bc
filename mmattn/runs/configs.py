"""The config that a command line names: read, moved to where the data are, completed."""

import argparse
import difflib
import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.utils import import_modules_from_strings

from mmattn.papers import alternatives

from . import checkpoint, plain_config
from .errors import UserError


def check_file(path: str | Path, what: str) -> None:
    """Raises UserError if a local path names no file; addresses with a scheme are left alone."""
    if '://' not in str(path) and not Path(path).is_file():
        raise UserError(f'{what} not found: {path}')


def load_config(args: argparse.Namespace) -> Config:
    """Reads the config of a command line and applies what the tools have in common.

    Args:
        args (argparse.Namespace): With ``config`` and the arguments of
            :func:`mmattn.runs.cli.add_common_arguments`.

    Returns:
        Config: With ``launcher``, ``work_dir`` and ``default_scope`` set.

    Raises:
        UserError: If the file, or one it is based on, is missing or not Python, or if an
            alternative does not fit it.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    checkpoint.install(args.trust_checkpoint)
    path = Path(args.config)
    cfg = _read(path, args.alternative, args.plain_config)
    # Not while it is read, where a missing module would be blamed on the config's syntax.
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    move_data(cfg, getattr(args, 'data_root', None))
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        names = list(args.alternative)
        if getattr(args, 'pretrained', None):
            names.append('pretrained')  # is the alternative of that name, even if unnamed
        cfg.work_dir = str(Path('work_dirs') / alternatives.combined_name(path, names))
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if cfg.get('default_scope') == 'mmdet':
        from mmdet.utils import setup_cache_size_limit_of_dynamo

        setup_cache_size_limit_of_dynamo()
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name):
            cfg[name] = _with_loader_defaults(cfg[name], cfg.get('default_scope'))
    return cfg


def _read(path: Path, names: Sequence[str], plain: bool) -> Config:
    """The config in a file with alternatives, or as data; raises UserError as `load_config`."""
    if not path.is_file():
        near = difflib.get_close_matches(
            path.name, [other.name for other in path.parent.glob('*.py')], n=1
        )
        hint = f'; did you mean {path.parent / near[0]}?' if near else ''
        raise UserError(f'config not found: {path}{hint}')
    if plain:
        if names:
            raise UserError('--alternative and --plain-config exclude each other: alternatives run')
        plain_config.restrict()
    try:
        return plain_config.load(path) if plain else alternatives.combine(path, names)
    except (alternatives.AlternativeError, plain_config.PlainConfigError) as error:
        raise UserError(str(error)) from error
    except SyntaxError as error:
        # mmengine does not always say which file, and keeps Python's own error as the context.
        cause = error.__context__ if isinstance(error.__context__, SyntaxError) else error
        raise UserError(f'{_file_read(error, path)}:{cause.lineno}: {cause.msg}') from error
    except FileNotFoundError as error:
        raise UserError(f'{path}: a base config is missing: {error.filename or error}') from error
    except Exception as error:
        raise UserError(f'{path}: {type(error).__name__}: {error}') from error


def move_data(cfg: Config, root: str | None = None) -> None:
    """Lets data sets and evaluators of a config read below `root` what they read below `data/`.

    Args:
        cfg (Config): Changed in place; paths that do not begin with `data/` stay.
        root (str, optional): By default what MMATTN_DATA says; without it nothing is changed.

    Raises:
        UserError: If there is no such folder.
    """
    name, root = ('--data-root', root) if root else ('MMATTN_DATA', os.environ.get('MMATTN_DATA'))
    if not root:
        return
    root = os.path.expanduser(root)
    if not os.path.isdir(root):
        raise UserError(f'{name}: there is no folder {root}')

    def moved(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: moved(value) for key, value in item.items()}
        if isinstance(item, (list, tuple)):
            return type(item)(map(moved, item))
        if isinstance(item, str) and (item == 'data' or item.startswith('data/')):
            return root + item[len('data') :]
        return item

    for split in ('train', 'val', 'test'):
        for name in (f'{split}_dataloader', f'{split}_evaluator'):
            if cfg.get(name):
                cfg[name] = moved(cfg.get(name))


def _file_read(error: SyntaxError, path: Path) -> str:
    """The config file that mmengine's reader was at when it raised the error."""
    found = str(path)
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = str(frame.f_locals.get('filename', ''))
        if name.endswith('.py'):
            found = os.path.normpath(name)
    return found


def _with_loader_defaults(given: dict[str, Any], scope: str | None) -> ConfigDict:
    loader = ConfigDict(given)
    if scope == 'mmpretrain':
        # What mmpretrain's own tools add to every loader.
        loader.setdefault('collate_fn', dict(type='default_collate'))
        loader.setdefault('persistent_workers', True)
    if not loader.get('num_workers'):
        # PyTorch refuses it without workers.
        loader.persistent_workers = False
    return loader
