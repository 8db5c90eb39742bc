"""Runs the papers' configs on the digits data: whole pipelines, two optimiser steps, a validation.

Without arguments, one config for each distinct pipeline; --all for all 143; --alternatives for what
the papers' rows might have been, each with one row of every table that lists it.

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
from collections.abc import Sequence

from mmattn import quiet
from mmattn.papers import alternatives, config_root, trial


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='*', help=f'paths relative to {config_root()}')
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--all', action='store_true', help='every config of every table')
    which.add_argument(
        '--alternatives', action='store_true', help='the alternatives of all tables, or of configs'
    )
    parser.add_argument('--list', action='store_true', help='say what would run, and run nothing')
    parser.add_argument(
        '--data-root', help='where to make the digits (default: a temporary folder)'
    )
    parser.add_argument('--verbose', action='store_true', help="show the codebases' own output")
    args = parser.parse_args(argv)
    try:
        # other configs than the papers' have no alternatives, but run
        for path in args.configs if args.alternatives else []:
            alternatives.row_of(config_root() / path)
    except alternatives.AlternativeError as error:
        parser.error(str(error))
    return args


def chosen(args: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """What to run: pairs of a config and the names of its alternatives."""
    if args.alternatives and args.configs:
        return [(path, [name]) for path in args.configs for name in alternatives.of_row(path)]
    if args.alternatives:
        return [(path, [name]) for path, name in trial.one_for_each_alternative()]
    paths = args.configs or trial.config_paths()
    if not args.configs and not args.all:
        paths = trial.one_for_each_pipeline(paths)
    return [(path, []) for path in paths]


def describe(path: str, names: Sequence[str]) -> str:
    """The config, and what its alternatives change in it, why and where."""
    lines = [alternatives.titled(path, names)]
    for name in names:
        item = alternatives.of_row(path)[name]
        lines += [f'  {item.changes}. {item.evidence}']
    if names:
        lines += [f'  {difference}' for difference in alternatives.changes(path, names)]
    return '\n'.join(lines)


def check(path: str, names: Sequence[str], data_root: str, verbose: bool) -> bool:
    """Run one config and print a line; return whether it ran."""
    title = alternatives.titled(path, names)
    if names:
        print(describe(path, names))
    said = io.StringIO()
    hushed = contextlib.nullcontext() if verbose else contextlib.redirect_stdout(said)
    try:
        with hushed:
            result = trial.run(path, data_root, names)
    except Exception:
        print(f'FAILED {title}\n{said.getvalue()}{traceback.format_exc()}', flush=True)
        return False
    losses = ' '.join(f'{loss:.3f}' for loss in result.losses)
    metrics = ' '.join(f'{name}={value:.3g}' for name, value in list(result.metrics.items())[:2])
    print(f'ok {title} ({result.seconds:.1f} s; loss {losses}; {metrics})', flush=True)
    return True


def main(argv: Sequence[str] | None = None) -> None:
    quiet.install()
    args = parse_args(argv)
    runs = chosen(args)
    if args.list:
        print('\n'.join(describe(*run) for run in runs))
        return
    with tempfile.TemporaryDirectory() as folder:
        data_root = args.data_root or folder
        trial.prepare(data_root)
        failed = [run for run in runs if not check(*run, data_root, args.verbose)]
    print(f'{len(runs) - len(failed)} of {len(runs)} configs ran')
    if failed:
        sys.exit('failed: ' + ', '.join(alternatives.titled(*run) for run in failed))


if __name__ == '__main__':
    main()
