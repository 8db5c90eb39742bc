"""Draws CAT's colla-factors against depth, from checkpoints alone, or over training, from logs.

python tools/visualization/colla_factors.py CHECKPOINT... --out colla.png
python tools/visualization/colla_factors.py --over-training work_dirs/RUN... --out course.png
"""

import argparse
from pathlib import Path

from mmattn.analysis import colla, colla_figure
from mmattn.analysis.outputs import figure_file
from mmattn.runs import checkpoint
from mmattn.runs.cli import check_file, one_line_errors
from mmattn.runs.errors import UserError


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'runs', nargs='+', type=Path, help='checkpoints; with --over-training folders of runs'
    )
    parser.add_argument(
        '--over-training', action='store_true', help='what CollaFactorHook logged, not checkpoints'
    )
    parser.add_argument('--labels', nargs='+', help='what to call them (default: their folders)')
    parser.add_argument('--out', type=Path, default=Path('colla_factors.png'))
    parser.add_argument('--trust-checkpoint', action='store_true', help='let it run code')
    parser.add_argument('--debug', action='store_true', help='show the traceback of every error')
    return parser.parse_args()


def main():
    args = parse_args()
    with one_line_errors(args.debug):
        checkpoint.install(args.trust_checkpoint)
        if args.labels and len(args.labels) != len(args.runs):
            raise UserError(f'{len(args.labels)} --labels for {len(args.runs)} runs')
        figure_file(args.out)
        if args.over_training:
            found = [colla.from_logs(path) for path in args.runs]
        else:
            for path in args.runs:
                check_file(path, 'checkpoint')
            found = [colla.from_checkpoint(path) for path in args.runs]
        if args.labels:
            found = [f._replace(label=label) for f, label in zip(found, args.labels, strict=True)]
        draw = colla_figure.over_training if args.over_training else colla_figure.against_depth
        draw(found).savefig(args.out)
        print(args.out)


if __name__ == '__main__':
    main()
