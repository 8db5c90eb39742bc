"""Time and memory of the gates, and of networks with and without their plugins.

    python tools/analysis_tools/benchmark.py modules --shapes 8x256x56x56 8x1024x14x14
    python tools/analysis_tools/benchmark.py modules --shapes resnet50 --dtypes fp32 bf16 \
        --layouts contiguous channels_last --json modules.json
    python tools/analysis_tools/benchmark.py network \
        configs/drtam/resnet50-drtam-r32_4xb128_in1k.py \
        --batch 256 --device cuda --amp bf16 --channels-last
    git worktree add before COMMIT
    python tools/analysis_tools/benchmark.py checkouts before --shapes 8x2048x7x7
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mmattn import quiet
from mmattn.analysis import benchmark as b
from mmattn.analysis.checkouts import compare

_SIZES = dict(mmpretrain=(224, 224), mmdet=(800, 1344), mmseg=(512, 512))


def shapes(text: str) -> list[tuple[int, int, int, int]]:
    """'8x256x56x56', or 'resnet50' / 'mobilenetv2': their shapes at batch 8."""
    named = dict(resnet50=b.RESNET50, mobilenetv2=b.MOBILENETV2)
    if text in named:
        return [(8, *shape) for shape in named[text]]
    try:
        n, c, h, w = map(int, text.split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is neither NxCxHxW nor one of {list(named)}'
        ) from None
    if min(n, c, h, w) < 1:
        raise argparse.ArgumentTypeError(f'{text!r}: every size must be at least 1')
    return [(n, c, h, w)]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    commands = parser.add_subparsers(dest='command', required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('--device', default='cpu')
    common.add_argument('--threads', type=int, help='CPU threads (default: those of PyTorch)')
    common.add_argument(
        '--rounds', type=int, help='interleaved rounds (default: 15 modules, 5 network)'
    )
    common.add_argument(
        '--plain-malloc',
        action='store_true',
        help='on a CPU, let freed memory go back to the system as it would (see keep_memory)',
    )
    common.add_argument('--json', type=Path, help='file for the rows and the machine, as JSON')
    common.add_argument(
        '--markdown', type=Path, help='file for the table (default: standard output)'
    )
    modules = commands.add_parser('modules', parents=[common], help='single gates')
    modules.add_argument('--gates', nargs='+', choices=b.GATES, default=b.GATES)
    modules.add_argument(
        '--shapes',
        nargs='+',
        type=shapes,
        default=[[(8, 256, 56, 56)]],
        metavar='NxCxHxW',
        help='or resnet50, mobilenetv2: their shapes at batch 8',
    )
    modules.add_argument('--dtypes', nargs='+', choices=b.DTYPES, default=['fp32'])
    modules.add_argument('--layouts', nargs='+', choices=b.LAYOUTS, default=['contiguous'])
    modules.add_argument(
        '--against',
        nargs='+',
        choices=b.AGAINST,
        default=[],
        help='code to time as well: plain, the equations of CAT at their plainest; timm, public'
        ' eager code (pip install timm); compiled, what torch.compile makes of the kernels and of'
        ' the equations; identity, ours with a learned share of the identity a channel',
    )
    modules.add_argument(
        '--depth',
        type=int,
        default=1,
        metavar='N',
        help='N gates one after the other in one module, as in a network; figures are those of one'
        ' (default: 1)',
    )
    modules.add_argument(
        '--inference', action='store_true', help='forward alone, without gradients'
    )
    modules.add_argument(
        '--clock',
        choices=b.CLOCKS,
        default='wall',
        help='cpu: processor time, to compare on a busy machine (with --threads 1, on the CPU)',
    )
    checkouts = commands.add_parser(
        'checkouts', help='gates of another checkout of this project, and of this one'
    )
    checkouts.add_argument(
        'before', type=Path, help='its folder, as `git worktree add FOLDER COMMIT` makes it'
    )
    checkouts.add_argument('--gates', nargs='+', choices=b.GATES, default=b.GATES)
    checkouts.add_argument(
        '--shapes', nargs='+', type=shapes, default=[shapes('resnet50')], metavar='NxCxHxW'
    )
    checkouts.add_argument('--rounds', type=int, help='default: 9')
    network = commands.add_parser(
        'network', parents=[common], help='a config against its bare network'
    )
    network.add_argument('config')
    network.add_argument('--batch', type=int, default=8)
    network.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'))
    network.add_argument('--amp', choices=['bf16', 'fp16'])
    network.add_argument('--channels-last', action='store_true')
    args = parser.parse_args(argv)
    if args.rounds is not None and args.rounds < 1:
        parser.error('--rounds must be at least 1')
    if args.command == 'modules' and args.depth < 1:
        parser.error('--depth must be at least 1')
    if args.command == 'checkouts' and not (args.before / 'mmattn').is_dir():
        parser.error(f'{args.before} is no checkout: it has no folder mmattn')
    if (
        args.command == 'modules'
        and args.clock == 'cpu'
        and (args.device, args.threads) != ('cpu', 1)
    ):
        parser.error('--clock cpu is for --device cpu --threads 1')
    if args.command == 'modules' and 'timm' in args.against:
        try:
            import timm  # noqa: F401
        except ImportError:
            parser.error('--against timm needs timm: pip install timm')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    quiet.install()
    args = parse_args(sys.argv[1:] if argv is None else argv)
    if args.command == 'checkouts':
        here = Path(__file__).resolve().parents[2]
        shapes_ = [s for group in args.shapes for s in group]
        try:
            rows = compare(args.before, here, args.gates, shapes_, args.rounds or 9)
        except RuntimeError as error:
            print(f'benchmark.py: error: {error}', file=sys.stderr)
            raise SystemExit(2) from None
        print(b.markdown(rows))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == 'cpu' and not args.plain_malloc:
        b.keep_memory()
    if args.command == 'modules':
        rows = b.modules(
            [s for group in args.shapes for s in group],
            args.gates,
            args.dtypes,
            args.layouts,
            args.device,
            args.rounds or 15,
            args.against,
            backward=not args.inference,
            clock=args.clock,
            depth=args.depth,
        )
    else:
        from mmengine.config import Config

        import mmattn  # noqa: F401  (the hosts)

        config = Config.fromfile(args.config)
        size = tuple(args.size or _SIZES.get(config.get('default_scope'), (224, 224)))
        rows = b.network(
            config, args.batch, size, args.device, args.rounds or 5, args.amp, args.channels_last
        )
    table = b.markdown(rows)
    if args.markdown:
        args.markdown.write_text(table + '\n')
    else:
        print(table)
    if args.json:
        args.json.write_text(
            json.dumps(dict(machine=b.machine(args.device), rows=rows), indent=1) + '\n'
        )


if __name__ == '__main__':
    main()
