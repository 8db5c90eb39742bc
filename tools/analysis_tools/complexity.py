"""Parameters and FLOPs of a paper's table beside the printed ones, or of a single config.

A table shows each number three times: by one rule for everything, as the authors' tool counted, and
as printed; where the last two differ stands a ≠.

python tools/analysis_tools/complexity.py --paper drtam --table 4
python tools/analysis_tools/complexity.py configs/cat/resnet50-cat-r16_8xb32_in1k.py
python tools/analysis_tools/complexity.py CONFIG --alternative NAME
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

# Some codebases print while they are imported; standard output is for the result alone.
with redirect_stdout(sys.stderr):
    from mmattn import quiet
    from mmattn.analysis.complexity import measure, table_rows
    from mmattn.analysis.complexity_report import STYLES, render, render_config, render_table
    from mmattn.analysis.counters import Convention
    from mmattn.lines import one_line
    from mmattn.papers import PAPERS, load
    from mmattn.papers.alternatives import AlternativeError


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', nargs='?', help='a config file; without it, tables')
    parser.add_argument('--paper', choices=PAPERS, help='one paper (default: both)')
    parser.add_argument('--table', type=int, help='one of its tables (default: all)')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='input of a single config (default: 224x224, detectors 800x1344, segmentors 512x512)',
    )
    parser.add_argument(
        '--alternative', nargs='+', default=[], metavar='NAME', help='of a single config, a row'
    )
    parser.add_argument('--format', choices=STYLES, default='markdown')
    parser.add_argument('--out', type=Path, help='file to write (default: standard output)')
    args = parser.parse_args(argv)
    if args.config and (args.paper or args.table):
        parser.error('give a config or a table, not both')
    if args.size and not args.config:
        parser.error('--size is for a single config; a table has its own input size')
    if args.alternative and not args.config:
        parser.error('--alternative is for a single config')
    if args.table and not args.paper:
        parser.error('--table needs --paper')
    if args.table and args.table not in load(args.paper):
        parser.error(f'{args.paper} has the tables {", ".join(map(str, load(args.paper)))}')
    if args.config and not Path(args.config).is_file():
        parser.error(f'no such file: {args.config}')
    return args


def report(args: argparse.Namespace) -> str:
    if args.config:
        convention = Convention(size=tuple(args.size)) if args.size else None
        names = tuple(args.alternative)
        title = '+'.join([args.config, *sorted(set(names))])
        return render_config(title, *measure(args.config, convention, names), args.format)
    tables = [
        (paper, table)
        for paper in ([args.paper] if args.paper else PAPERS)
        for table in ([args.table] if args.table else load(paper))
    ]
    if args.format != 'markdown':
        return render([row for pair in tables for row in table_rows(*pair)], args.format)
    return '\n'.join(render_table(*pair) for pair in tables)


def main(argv: Sequence[str] | None = None) -> None:
    quiet.install()
    args = parse_args(argv)
    try:
        with redirect_stdout(sys.stderr):
            text = report(args)
    except AlternativeError as error:
        print(f'error: {one_line(error)}', file=sys.stderr)
        sys.exit(2)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding='utf-8')
    else:
        sys.stdout.write(text)


if __name__ == '__main__':
    main()
