"""Where a gate can go in a config's model, with what it costs there, and a config of the chosen.

    python tools/analysis_tools/placement.py CONFIG --gate SE
    python tools/analysis_tools/placement.py CONFIG --gate CAT reduction=8 --sort memory
    python tools/analysis_tools/placement.py CONFIG --gate ECA --at 'backbone.stage*' 'neck'
    python tools/analysis_tools/placement.py CONFIG --gate ECA --choose 3 7 --write my_config.py

Candidates are the slots of the backbone, a position in every stage or in one, and modules by their
names. Parameters and FLOPs are counted; time and memory are measured, of the backbone and the neck.
"""

import argparse
import ast
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Some codebases print while they are imported; standard output is for the result alone.
with redirect_stdout(sys.stderr):
    import torch
    from mmengine.config import Config

    from mmattn import quiet
    from mmattn.analysis import placement
    from mmattn.analysis.complexity_report import markdown
    from mmattn.lines import one_line

SIZES = dict(mmpretrain=(224, 224), mmdet=(800, 1344), mmseg=(512, 512))
HEADER = ['', 'Place', 'Parameters', 'MFLOPs', 'ms', '%', 'MiB kept']


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', type=Path)
    parser.add_argument(
        '--gate', nargs='+', required=True, metavar='TYPE', help='and arguments, as reduction=8'
    )
    parser.add_argument('--at', nargs='+', default=(), help='modules, in place of slots')
    parser.add_argument('--start', help='identity, identity-scalar (default: as the paper)')
    parser.add_argument('--sort', choices=placement.SORTS, default='ms')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help='of images')
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall', help='see benchmark.py')
    parser.add_argument('--infer', action='store_true', help='time inference, not training')
    parser.add_argument('--format', choices=('markdown', 'json'), default='markdown')
    parser.add_argument('--choose', type=int, nargs='+', metavar='N', help='numbers of the table')
    parser.add_argument('--write', type=Path, help='a config of the chosen; must not exist')
    args = parser.parse_args(argv)
    if not args.config.is_file():
        parser.error(f'no such file: {args.config}')
    if bool(args.choose) != bool(args.write):
        parser.error('--choose and --write go together')
    if min(args.batch, args.rounds, *(args.size or (1,))) < 1:
        parser.error('--batch, --rounds and --size must be at least 1')
    return args


def gate_of(words: Sequence[str]) -> dict[str, Any]:
    """'SE reduction=8' as a dict; ValueError for an argument without a value."""
    found = dict(type=words[0])
    for word in words[1:]:
        key, given, value = word.partition('=')
        if not given:
            raise ValueError(f'--gate: {word!r} must be NAME=VALUE')
        try:
            found[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            found[key] = value
    return found


def table(rows: Sequence[placement.Row]) -> str:
    cells = [
        [
            str(row.number or ''),
            row.where,
            f'{row.params:,}',
            f'{row.flops / 1e6:.2f}',
            f'{row.ms:.1f}',
            f'{100 * row.share:.1f}',
            f'{row.memory / 2**20:.1f}',
        ]
        for row in rows
    ]
    return markdown(HEADER, cells, left=2)


def main(argv: Sequence[str] | None = None) -> None:
    quiet.install()
    args = parse_args(argv)
    try:
        with redirect_stdout(sys.stderr):
            text = run(args)
    except (OSError, ValueError) as error:
        print(f'error: {one_line(error)}', file=sys.stderr)
        sys.exit(2)
    sys.stdout.write(text)


def run(args: argparse.Namespace) -> str:
    config = Config.fromfile(args.config)
    scope = config.get('default_scope')
    if scope not in SIZES or 'backbone' not in config.get('model', {}):
        raise ValueError(f'{args.config} is no config of a model of {", ".join(SIZES)}')
    found, refused = placement.candidates(config, gate_of(args.gate), args.at, args.start)
    if args.choose:
        wrong = [number for number in args.choose if not 1 <= number <= len(found)]
        if wrong:
            raise ValueError(f'--choose: there are the numbers 1 to {len(found)}, got {wrong[0]}')
        chosen = [found[number - 1] for number in dict.fromkeys(args.choose)]
        placement.write_child(config, chosen, args.write)
        return f'{args.write}\n'
    torch.device(args.device)
    bare, *rows = placement.measure(
        config,
        found,
        tuple(args.size or SIZES[scope]),
        args.batch,
        args.device,
        args.rounds,
        not args.infer,
        args.clock,
    )
    rows = [bare, *sorted(rows, key=lambda row: getattr(row, args.sort))]
    if args.format == 'json':
        records = [dict(asdict(row), where=row.where) for row in rows]
        return json.dumps(dict(rows=records, refused=refused), indent=2, default=str) + '\n'
    for line in refused:
        print(f'no place: {one_line(line)}', file=sys.stderr)
    return table(rows)


if __name__ == '__main__':
    main()
