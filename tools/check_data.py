"""Checks the data of configs before a training: files, labels, leaks.

Every annotation is read, every image goes through the loading transforms of the config's pipeline
in one process a processor. Exit code 0 if a training can begin, 1 if there are errors, 2 if the
check itself fails.
"""

import argparse
import json
import os
import sys

from mmengine.config import Config

from mmattn.datasets.check import check
from mmattn.datasets.prepare import DataError
from mmattn.lines import indented, one_line
from mmattn.runs.cli import UserError, add_config_arguments, load_config


def count(text: str) -> int:
    """A number of processes, from the command line."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f'must be a number from 0 on, got {text!r}')
    return int(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    parser.add_argument(
        '--quick',
        action='store_true',
        help='decode the first, the last and a thousand random files of each data set',
    )
    parser.add_argument('--json', metavar='FILE', help='write the whole report there')
    parser.add_argument(
        '--workers', type=count, help='processes (default: one a processor; 0: no other)'
    )
    parser.add_argument('--seed', type=int, default=0, help='of the random files')
    add_config_arguments(parser)
    return parser.parse_args()


def load(path: str, args: argparse.Namespace) -> Config:
    """A config as the training would read it."""
    common = dict(work_dir=None, launcher='none', local_rank=0, trust_checkpoint=False)
    return load_config(argparse.Namespace(**{**vars(args), **common, 'config': path}))


def writable(path: str) -> bool:
    """Whether a file can be written, be it there already or not."""
    place = path if os.path.exists(path) else os.path.dirname(path) or '.'
    return os.access(place, os.W_OK) and not os.path.isdir(path)


def main() -> int:
    args = parse_args()
    try:
        configs = {path: load(path, args) for path in args.configs}
        if args.json and not writable(args.json):
            raise UserError(f'--json: {args.json} cannot be written')  # not after hours
        report = check(configs, args.quick, args.workers, args.seed)
        if args.json:
            with open(args.json, 'w', encoding='utf-8') as file:
                json.dump(report.to_dict(), file, indent=1)
    except (UserError, DataError, OSError) as error:
        print(f'error: {one_line(error)}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('\ninterrupted', file=sys.stderr)
        return 130
    for line in report.lines():
        print(indented(line))
    return 0 if report.right else 1


if __name__ == '__main__':
    sys.exit(main())
