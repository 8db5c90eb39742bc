"""Prepares ImageNet-1k, COCO 2017, VOC 2007 + 2012, SBD's masks and CIFAR-100 for the configs.

Takes the official archives, or folders that were unpacked before, from where they are; goes on
after an interruption; overwrites nothing. Ends with counts against those of the papers: exit code
0 if they agree, 1 if something differs, 2 for an error.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

from mmattn import quiet
from mmattn.datasets.prepare import DATA_SETS, DataError, Result, prepare
from mmattn.lines import indented, one_line


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'names', nargs='+', choices=DATA_SETS, metavar='NAME', help=f'of {", ".join(DATA_SETS)}'
    )
    parser.add_argument(
        '--from',
        dest='sources',
        nargs='+',
        default=[],
        metavar='DIR',
        help='where archives or unpacked folders are (without it: count what is there)',
    )
    parser.add_argument(
        '--to',
        default=os.environ.get('MMATTN_DATA') or 'data',
        metavar='DIR',
        help='the data root (default: that of MMATTN_DATA, or data)',
    )
    parser.add_argument(
        '--no-checksum',
        action='store_true',
        help='take archives that are not the published files, byte for byte',
    )
    return parser.parse_args(argv)


def report(result: Result) -> Iterator[str]:
    """The lines that say what a data set came to."""
    for count in result.counts:
        yield f'{result.name}: {count.split}: {count.found} of {count.wanted}'
        yield from (f'    {difference}' for difference in count.differences)
    yield from (f'    {difference}' for difference in result.differences)


def main(argv: Sequence[str] | None = None) -> int:
    quiet.install()
    args = parse_args(argv)
    try:
        results = prepare(args.names, args.sources, args.to, checksums=not args.no_checksum)
    except DataError as error:
        print(f'error: {one_line(error)}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('\ninterrupted; the same command goes on from here', file=sys.stderr)
        return 130
    for result in results:
        for line in report(result):
            print(indented(line))
    if all(result.right for result in results):
        print('all as in the papers')
        return 0
    return 1


if __name__ == '__main__':
    sys.exit(main())
