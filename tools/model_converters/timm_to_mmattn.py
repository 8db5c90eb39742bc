"""Gated ImageNet weights of timm, as a checkpoint for our hosts.

    python tools/model_converters/timm_to_mmattn.py seresnet50
    python tools/model_converters/timm_to_mmattn.py ecaresnet50d --codebase mmdet --out eca50d.pth
    python tools/model_converters/timm_to_mmattn.py seresnet101 --file my_seresnet101.pth

It writes weights alone, and prints the `backbone` of a config that they fit. Without --file, timm's
published weights are downloaded. A file is read as data; whatever code it holds is not run.
"""

import argparse
import sys
from pathlib import Path

from mmattn import quiet
from mmattn.converters import NAMES, from_timm
from mmattn.converters.files import read, report, write
from mmattn.converters.resnet import CODEBASES
from mmattn.converters.timm import check_name, download, pretrained_cfg
from mmattn.lines import one_line
from mmattn.runs import checkpoint


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'name', help=f'with or without a tag of timm (seresnet50.a1_in1k): {", ".join(NAMES)}'
    )
    parser.add_argument('--file', type=Path, help='.pth or .safetensors, in place of a download')
    parser.add_argument('--out', type=Path, help='must not exist (default: NAME_mmattn.pth)')
    parser.add_argument(
        '--codebase',
        choices=CODEBASES,
        default='mmpretrain',
        help='whose names a ResNet-D has; of the others, all have the same (default: %(default)s)',
    )
    return parser.parse_args(argv)


def main(argv=None):
    quiet.install()
    args = parse_args(argv)
    target = args.out or Path(f'{args.name}_mmattn.pth')
    try:
        check_name(args.name)
        if target.exists():  # said before the download
            raise FileExistsError(f'{target} exists; it is left as it is')
        cfg = None if args.file else pretrained_cfg(args.name)
        path = args.file or download(cfg)
        converted = from_timm(args.name, read(path), args.codebase)
        images = {key: cfg.get(key) for key in ('mean', 'std', 'input_size')} if cfg else {}
        source = str(args.file) if args.file else f'timm {cfg.get("tag") or ""} {args.name}'
        write(target, converted, source, codebase=args.codebase, **images)
    except (OSError, ValueError, checkpoint.CheckpointError) as error:
        print(f'error: {one_line(error)}', file=sys.stderr)
        sys.exit(2)
    print(report(target, converted, args.codebase, cfg))


if __name__ == '__main__':
    main()
