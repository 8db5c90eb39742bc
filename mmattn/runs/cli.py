"""The parts that tools/train.py and tools/test.py share: arguments, configs, errors."""

import argparse
import os

from mmengine.config import DictAction

from mmattn import quiet

from .configs import check_file, load_config, move_data
from .endings import describe, one_line_errors, rank
from .errors import UserError

__all__ = [
    'UserError',
    'add_common_arguments',
    'add_config_arguments',
    'check_file',
    'describe',
    'load_config',
    'move_data',
    'one_line_errors',
    'rank',
]

# Here and not in a function: data workers that are not forked import the tool, and so this file.
quiet.install()


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """What `load_config` reads besides the config's path, in every tool that reads one."""
    parser.add_argument(
        '--alternative',
        nargs='+',
        default=[],
        metavar='NAME',
        help="what a table's row might have been: see tools/check_configs.py --alternatives --list",
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override the config: key=value, key=a,b or key="[a,b]", with dots for nested keys',
    )
    parser.add_argument(
        '--data-root',
        metavar='DIR',
        help="takes the place of the config's data/ (so does MMATTN_DATA, for all commands)",
    )
    parser.add_argument(
        '--plain-config',
        action='store_true',
        help='read the config as data: no Python is run, only registered classes are built',
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What the tools that run a model have in common."""
    add_config_arguments(parser)
    parser.add_argument(
        '--work-dir',
        help="folder for logs and checkpoints (default: the config's, or work_dirs/<config name>)",
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='let checkpoints run code: only for files that nobody but you could have written',
    )
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    # torch.distributed.launch passes it; everybody else sets LOCAL_RANK.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        '--debug',
        action='store_true',
        default=os.environ.get('MMATTN_DEBUG', '0') != '0',
        help='show the traceback of every error (so does MMATTN_DEBUG=1)',
    )
