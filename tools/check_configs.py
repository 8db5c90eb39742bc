"""Runs the papers' configs on the digits data: whole pipelines, two optimiser steps, a validation.

Without arguments, one config for each distinct pipeline; --all for all 143.

Kept as in the config: model, depth, number of classes, transforms, losses, optimiser, schedule and
evaluator. Made smaller: images (sizes by 8, CIFAR's left alone), batches (2), the proposals and
detections of a detector. Pretrained weights are not loaded.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import traceback

from mmattn import quiet
from mmattn.papers import config_root, trial


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='*', help=f'paths relative to {config_root()}')
    parser.add_argument('--all', action='store_true', help='every config of every table')
    parser.add_argument(
        '--data-root', help='where to make the digits (default: a temporary folder)'
    )
    parser.add_argument('--verbose', action='store_true', help="show the codebases' own output")
    return parser.parse_args(argv)


def check(path, data_root, verbose):
    """Run one config and print a line; return whether it ran."""
    said = io.StringIO()
    hushed = contextlib.nullcontext() if verbose else contextlib.redirect_stdout(said)
    try:
        with hushed:
            result = trial.run(path, data_root)
    except Exception:
        print(f'FAILED {path}\n{said.getvalue()}{traceback.format_exc()}', flush=True)
        return False
    losses = ' '.join(f'{loss:.3f}' for loss in result.losses)
    metrics = ' '.join(f'{name}={value:.3g}' for name, value in list(result.metrics.items())[:2])
    print(f'ok {path} ({result.seconds:.1f} s; loss {losses}; {metrics})', flush=True)
    return True


def main(argv=None):
    quiet.install()
    args = parse_args(argv)
    paths = args.configs or trial.config_paths()
    if not args.configs and not args.all:
        paths = trial.one_for_each_pipeline(paths)
    with tempfile.TemporaryDirectory() as folder:
        data_root = args.data_root or folder
        trial.prepare(data_root)
        failed = [path for path in paths if not check(path, data_root, args.verbose)]
    print(f'{len(paths) - len(failed)} of {len(paths)} configs ran')
    if failed:
        sys.exit('failed: ' + ', '.join(failed))


if __name__ == '__main__':
    main()
