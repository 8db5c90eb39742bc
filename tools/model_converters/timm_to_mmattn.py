"""Gated ImageNet weights of timm, as a checkpoint for our hosts.

    python tools/model_converters/timm_to_mmattn.py seresnet50
    python tools/model_converters/timm_to_mmattn.py ecaresnet50d --codebase mmdet --out eca50d.pth
    python tools/model_converters/timm_to_mmattn.py seresnet101 --file my_seresnet101.pth

It writes weights alone, and prints the `backbone` of a config that they fit. Without --file, timm's
published weights are downloaded. A file is read as data; whatever code it holds is not run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmattn import quiet
from mmattn.converters import NAMES, from_timm
from mmattn.converters.files import read, report, write
from mmattn.converters.resnet import CODEBASES
from mmattn.converters.timm import check_name, download, pretrained_cfg
from mmattn.lines import one_line
from mmattn.runs import checkpoint


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
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


def main(argv: Sequence[str] | None = None) -> None:
    quiet.install()
    args = parse_args(argv)
    target = args.out or Path(f'{args.name}_mmattn.pth')
    try:
        check_name(args.name)
        if target.exists():  # said before the download
            raise FileExistsError(f'{target} exists; it is left as it is')
        cfg, path, images, source = None, args.file, {}, str(args.file)
        if path is None:
            cfg = pretrained_cfg(args.name)
            path = download(cfg)
            images = {key: cfg.get(key) for key in ('mean', 'std', 'input_size')}
            source = f'timm {cfg.get("tag") or ""} {args.name}'
        converted = from_timm(args.name, read(path), args.codebase)
        write(target, converted, source, codebase=args.codebase, **images)
    except (OSError, ValueError, checkpoint.CheckpointError) as error:
        print(f'error: {one_line(error)}', file=sys.stderr)
        sys.exit(2)
    print(report(target, converted, args.codebase, cfg))


if __name__ == '__main__':
    main()
