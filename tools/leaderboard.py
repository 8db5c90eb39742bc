"""A paper's table beside our runs of it, judged.

python tools/leaderboard.py cat 1
python tools/leaderboard.py cat 1 2 --format html --out leaderboard.html
python tools/leaderboard.py cat 1 --merge lab-a.tar.gz lab-b.tar.gz
python tools/leaderboard.py cat 1 --verify work_dirs/reproduce
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

# Only --complexity builds models: without torch and the codebases this starts in a moment.
if '--complexity' not in sys.argv:
    os.environ['MMATTN_READ_ONLY'] = '1'

# Some codebases print while they are imported; standard output is for the result alone.
with redirect_stdout(sys.stderr):
    from mmattn import quiet
    from mmattn.leaderboard import packs
    from mmattn.leaderboard.build import boards
    from mmattn.leaderboard.collect import Known, collect
    from mmattn.leaderboard.render import FORMATS, render, show
    from mmattn.leaderboard.sources import Folder, Source
    from mmattn.lines import one_line
    from mmattn.papers import own
    from mmattn.runs.atomic import write_text

os.environ.pop('MMATTN_READ_ONLY', None)  # for these imports, and no process that is started

FAILED = 1
SUFFIXES = {'.html': 'html', '.md': 'markdown', '.csv': 'csv', '.json': 'json'}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('paper', help="cat or drtam; with --tables the folder's name")
    parser.add_argument('table', type=int, nargs='*', help='numbers of its tables (default: all)')
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/reproduce'),
        help='the root below which the runs lie (default: %(default)s)',
    )
    parser.add_argument(
        '--merge', nargs='+', default=[], metavar='PACK', help='count the runs of packs, too'
    )
    parser.add_argument(
        '--tables',
        nargs='+',
        default=[],
        metavar='FILE',
        help="tables of your own, or rows that join a paper's",
    )
    parser.add_argument(
        '--seeds', type=int, help='seeds that each row should have (default: those seen)'
    )
    parser.add_argument(
        '--complexity', action='store_true', help='count parameters and FLOPs: a second a row'
    )
    parser.add_argument('--format', choices=FORMATS, help='default: by the name of --out')
    parser.add_argument('--out', type=Path, help='file to write (default: standard output)')
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        '--verify', type=Path, metavar='DIR', help='only compare records with logs and checkpoints'
    )
    instead.add_argument(
        '--export', type=Path, metavar='PACK', help='only pack records and logs into a .tar.gz'
    )
    args = parser.parse_args(argv)
    if args.seeds is not None and args.seeds < 1:
        parser.error(f'--seeds must be 1 or more, got {args.seeds}')
    if args.format is None:
        args.format = SUFFIXES.get(args.out.suffix, 'markdown') if args.out else 'terminal'
    if args.out and args.format == 'terminal':
        parser.error(f'--out takes the formats {", ".join(FORMATS[1:])}')
    return args


def main(argv: Sequence[str] | None = None) -> int:
    quiet.install()
    args = parse_args(argv)
    try:
        own.select(args.paper, args.table, args.tables)
        if args.verify:
            return verify(args.verify, args.tables)
        if args.export:
            count = packs.export(args.work_dir, args.export)
            print(f'{count} records in {args.export}')
            return 0
        sources: list[Source] = [packs.Pack(path) for path in args.merge]
        if args.work_dir.is_dir() or not sources:
            sources.insert(0, Folder(args.work_dir))
        with redirect_stdout(sys.stderr):
            found = boards(
                args.paper, args.table, sources, args.seeds, args.tables, args.complexity
            )
        if args.format == 'terminal':
            show(found)
            return 0
        text = render(found, args.format)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_text(args.out, text)
            print(f'wrote {args.out}', file=sys.stderr)
        else:
            sys.stdout.write(text)
    except (OSError, ValueError) as error:
        print(f'error: {one_line(error)}', file=sys.stderr)
        return 2
    return 0


def verify(root: Path, files: Sequence[str]) -> int:
    runs, faults = collect([Folder(root)], Known.with_files(files))
    faults += packs.verify(root, runs)
    for fault in faults:
        print(one_line(f'{fault.place}: {fault.reason}'))
    print(f'{len(runs)} runs, {len(faults)} faults')
    return FAILED if faults else 0


if __name__ == '__main__':
    sys.exit(main())
