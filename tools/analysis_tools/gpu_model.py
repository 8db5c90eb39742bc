"""What the operators do on a GPU, counted and modelled without one.

    python tools/analysis_tools/gpu_model.py launches
    python tools/analysis_tools/gpu_model.py launches --shapes 8x256x56x56 --dtype fp32
    python tools/analysis_tools/gpu_model.py code --targets 80 90 100 --ops drtam cat

launches: how many, the bytes they move, and a model of the time (`mmattn.analysis.launches`).
code: registers, spilled accesses and instructions of every kernel (`mmattn.analysis.machine_code`).
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from mmattn import quiet
from mmattn.analysis import launches, machine_code
from mmattn.ops import examples

DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)


def shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(map(int, text.split('x')))
    except ValueError:
        sizes = ()
    if len(sizes) != 4 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not NxCxHxW of four sizes >= 1')
    return sizes


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    commands = parser.add_subparsers(dest='command', required=True)
    counted = commands.add_parser('launches', help='launches, bytes, and a model of the time')
    counted.add_argument(
        '--shapes', nargs='+', type=shape, default=launches.SHAPES, metavar='NxCxHxW'
    )
    code = commands.add_parser('code', help='registers, spills and instructions of the kernels')
    code.add_argument('--shape', type=shape, default=machine_code.SHAPE, metavar='NxCxHxW')
    code.add_argument(
        '--targets', nargs='+', type=int, choices=machine_code.TARGETS, default=machine_code.TARGETS
    )
    code.add_argument(
        '--ops', nargs='+', choices=examples.ARGUMENTS, default=list(launches.GATES.values())
    )
    code.add_argument('--contiguous', action='store_true', help='in place of channels_last')
    for command in (counted, code):
        command.add_argument('--dtype', choices=DTYPES, default='bf16')
    args = parser.parse_args(argv)
    try:
        import triton  # noqa: F401
    except ImportError:
        parser.error('this needs Triton: pip install triton')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    quiet.install()
    args = parse_args(sys.argv[1:] if argv is None else argv)
    dtype = DTYPES[args.dtype]
    if args.command == 'launches':
        table = launches.rows(args.shapes, dtype)
    else:
        last = not args.contiguous
        table = machine_code.rows(args.ops, args.targets, args.shape, dtype, last)
    print(launches.markdown(table))


if __name__ == '__main__':
    main()
