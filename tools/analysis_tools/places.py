"""Where `plug` can put gates in a config's model: every module that fits, its maps, or why not.

python tools/analysis_tools/places.py CONFIG --list                    # what can have a gate
python tools/analysis_tools/places.py CONFIG --list 'backbone.**' --all  # and what cannot, and why
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

# Some codebases print while they are imported; standard output is for the result alone.
with redirect_stdout(sys.stderr):
    from mmattn import quiet
    from mmattn.analysis.complexity import build
    from mmattn.hosts.plug import places
    from mmattn.lines import one_line


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='a config file')
    parser.add_argument(
        '--list',
        nargs='*',
        default=[],
        metavar='PATTERN',
        help='of module names, part by part: * stays within a part, ** is any number of parts '
        '(default: all modules)',
    )
    parser.add_argument('--all', action='store_true', help='also what can have no gate, and why')
    args = parser.parse_args(argv)
    if not Path(args.config).is_file():
        parser.error(f'no such file: {args.config}')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    quiet.install()
    args = parse_args(argv)
    try:
        with redirect_stdout(sys.stderr):
            found = places(build(args.config), args.list or ['**'])
        shown = [place for place in found if args.all or not place.reason]
        if not shown:
            raise ValueError('no module of these can have a gate; --all says why')
    except (OSError, ValueError) as error:
        print(f'error: {one_line(error)}', file=sys.stderr)
        sys.exit(2)
    print(*shown, sep='\n')


if __name__ == '__main__':
    main()
