"""The config of a model that is looked at: a file's, or the one its checkpoint carries."""

import argparse
import tempfile
from pathlib import Path

from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from mmattn.runs import checkpoint, plain_config
from mmattn.runs.cli import load_config, move_data
from mmattn.runs.errors import UserError


def config_at(path: str | Path, args: argparse.Namespace) -> Config:
    """The config in a file, with what a command line says of configs (`cli.add_config_arguments`).

    Raises:
        UserError: as `cli.load_config`.
    """
    defaults = dict(work_dir=None, launcher='none', local_rank=0, trust_checkpoint=False)
    return load_config(argparse.Namespace(**{**defaults, **vars(args), 'config': str(path)}))


def config_inside(path: str | Path) -> Config:
    """The config that a checkpoint of mmengine carries, read as data: nothing of it is run.

    Raises:
        UserError: if it carries none, or one that is more than data.
    """
    text = checkpoint.load_meta(path).get('cfg')
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{path} carries no config: give one')
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'config.py'
        file.write_text(text, encoding='utf-8')
        try:
            cfg = plain_config.load(file)
        except plain_config.PlainConfigError as error:
            reason = str(error).replace(str(file), 'its config')
            raise UserError(f'{path}: {reason}; give the config as a file') from None
    return Config(cfg._cfg_dict.to_dict())


def config_for(
    path: str | Path | None, checkpoint_path: str | Path, args: argparse.Namespace
) -> Config:
    """The config in a file, or without one that which the checkpoint carries.

    The latter can name only what is registered from here on, for the life of the process.

    Raises:
        UserError: as `config_at` and `config_inside`.
    """
    if path is not None:
        return config_at(path, args)
    if args.alternative:
        raise UserError('--alternative is for configs in files')
    checkpoint.install(args.trust_checkpoint)
    cfg = config_inside(checkpoint_path)
    plain_config.restrict()
    import_modules_from_strings(imports=['mmattn'])
    move_data(cfg, args.data_root)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    return cfg
