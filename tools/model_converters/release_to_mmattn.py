"""The papers' own released weights, which you have on disk, as a checkpoint for our hosts.

    python tools/model_converters/release_to_mmattn.py cbam RESNET50_CBAM.pth
    python tools/model_converters/release_to_mmattn.py eca eca_resnet50.pth.tar --codebase mmdet
    python tools/model_converters/release_to_mmattn.py ca mbv2_ca.pth --out mobilenet_ca.pth

cbam is Jongchan/attention-module's ResNets, eca BangguWu/ECANet's, ca houqb/CoordAttention's
MobileNetV2. It writes weights alone, and prints the `backbone` of a config that they fit. The file
is read as data; whatever code it holds is not run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmattn import quiet
from mmattn.converters import RELEASES, from_release
from mmattn.converters.files import read, report, write
from mmattn.converters.resnet import CODEBASES
from mmattn.lines import one_line
from mmattn.runs import checkpoint


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('release', choices=RELEASES)
    parser.add_argument('file', type=Path, help='the downloaded weights')
    parser.add_argument('--out', type=Path, help='must not exist (default: FILE_mmattn.pth)')
    parser.add_argument('--codebase', choices=CODEBASES, default='mmpretrain')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    quiet.install()
    args = parse_args(argv)
    target = args.out or Path(f'{args.file.name.partition(".")[0]}_mmattn.pth')
    try:
        converted = from_release(args.release, read(args.file), args.codebase)
        write(target, converted, f'{args.release}: {args.file.name}', codebase=args.codebase)
    except (OSError, ValueError, checkpoint.CheckpointError) as error:
        print(f'error: {one_line(error)}', file=sys.stderr)
        sys.exit(2)
    print(report(target, converted, args.codebase))


if __name__ == '__main__':
    main()
