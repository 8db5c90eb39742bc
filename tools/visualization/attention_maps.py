"""Draws what a trained model's gates pool, and what they multiply by, on pictures.

python tools/visualization/attention_maps.py CONFIG CHECKPOINT IMAGE...
python tools/visualization/attention_maps.py CONFIG CHECKPOINT china --compare CONFIG2 CHECKPOINT2
"""

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path

# Codebases print while they are imported and read data; standard output is for the paths alone.
with redirect_stdout(sys.stderr):
    from mmattn.analysis.attention_maps import Network, draw
    from mmattn.analysis.config_of import config_at
    from mmattn.analysis.outputs import folder, titles_of
    from mmattn.runs.cli import add_config_arguments, check_file, one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument(
        'images',
        nargs='+',
        metavar='IMAGE',
        help="a file; china or flower (scikit-learn's); test:N, the Nth of the config's test set",
    )
    parser.add_argument(
        '--compare', nargs=2, metavar=('CONFIG2', 'CHECKPOINT2'), help='a second model beside it'
    )
    parser.add_argument(
        '--stages',
        type=int,
        nargs='+',
        default=[],
        help='the first gate of each (default: all; 0: stem)',
    )
    parser.add_argument(
        '--gates', nargs='+', default=[], metavar='PATTERN', help="by name: 'backbone.layer1.*'"
    )
    parser.add_argument(
        '--maps', nargs='+', metavar='MAP', help='columns, by the names of the single files'
    )
    parser.add_argument(
        '--titles', nargs='+', help='what to call the models (default: the configs)'
    )
    parser.add_argument(
        '--stretch', action='store_true', help='all colours for factors that hardly vary, too'
    )
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help='resize files first')
    parser.add_argument('--out', type=Path, default=Path('attention_maps'), help='folder')
    parser.add_argument('--no-parts', action='store_true', help='the figures without single files')
    parser.add_argument('--device', default='cpu')
    add_config_arguments(parser)
    parser.add_argument('--trust-checkpoint', action='store_true', help='let it run code')
    parser.add_argument('--debug', action='store_true', help='show the traceback of every error')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors(args.debug):
        pairs = [(args.config, args.checkpoint)] + ([args.compare] if args.compare else [])
        titles = titles_of(pairs, args.titles)
        folder(args.out)
        with redirect_stdout(sys.stderr):
            networks = []
            for (config, checkpoint), title in zip(pairs, titles, strict=True):
                check_file(checkpoint, 'checkpoint')
                cfg = config_at(config, args)
                networks.append(Network(cfg, checkpoint, args.stages, args.gates, args.device))
                networks[-1].title = title
            written = draw(
                networks,
                args.images,
                args.out,
                args.size,
                args.maps,
                not args.no_parts,
                args.stretch,
            )
        for path in written:
            print(path)


if __name__ == '__main__':
    main()
