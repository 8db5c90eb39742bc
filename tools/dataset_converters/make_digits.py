"""Makes small data sets in the real formats from scikit-learn's handwritten digits."""

import argparse
import sys
import time

from mmattn import quiet
from mmattn.datasets import digits
from mmattn.lines import one_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='data/digits')
    parser.add_argument('--task', nargs='+', default=['all'], choices=('all', *digits.TASKS))
    parser.add_argument('--num', type=int, default=1000, help='training images')
    parser.add_argument('--num-val', type=int, help='validation images (default: num / 4)')
    parser.add_argument('--size', type=int, help='longer side in pixels (default: 64, scenes: 128)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--hard', action='store_true', help='small digits among halves of others')
    return parser.parse_args()


def main() -> None:
    quiet.install()
    args = parse_args()
    for task in digits.TASKS if 'all' in args.task else args.task:
        started = time.time()
        try:
            made = digits.make(
                args.root, task, args.num, args.num_val, args.size, args.seed, args.hard
            )
        except (ValueError, OSError) as error:
            print(f'error: {one_line(error)}', file=sys.stderr)
            sys.exit(2)
        what = f'made in {time.time() - started:.1f} s' if made else 'was there already'
        print(f'{args.root}: {task} {what}')


if __name__ == '__main__':
    main()
