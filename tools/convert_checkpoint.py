"""Converts checkpoints to safetensors, which cannot hold code, and back.

    python tools/convert_checkpoint.py work_dirs/x/epoch_100.pth x.safetensors
    python tools/convert_checkpoint.py x.safetensors x.pth
    python tools/convert_checkpoint.py work_dirs/x/epoch_100.pth x.safetensors --publish

The weights are kept, with what of the checkpoint's meta is plain (epoch, seed, class names). What
only a resumption needs is left out, as it is by what OpenMMLab publishes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmattn import quiet
from mmattn.lines import one_line
from mmattn.runs import checkpoint


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path, help='.pth or .safetensors')
    parser.add_argument('target', type=Path, help='the other of the two; must not exist')
    parser.add_argument(
        '--publish',
        action='store_true',
        help="put the first eight digits of the file's SHA-256 into its name, which loading checks",
    )
    parser.add_argument('--sha256', default='', help="what the source's SHA-256 must begin with")
    parser.add_argument(
        '--trust-checkpoint', action='store_true', help='let the source run code while it is read'
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    quiet.install()
    args = parse_args(argv)
    try:
        written = checkpoint.convert(
            args.source, args.target, args.trust_checkpoint, args.sha256, args.publish
        )
    except (OSError, checkpoint.CheckpointError) as error:
        print(f'error: {one_line(error)}', file=sys.stderr)
        sys.exit(2)
    print(f'{written}\nSHA-256 {checkpoint.sha256_of(written)}')


if __name__ == '__main__':
    main()
