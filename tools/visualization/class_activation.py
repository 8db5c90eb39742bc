"""Draws class activation maps of one or two models, and measures how faithful they are.

python tools/visualization/class_activation.py CONFIG CHECKPOINT IMAGE...
python tools/visualization/class_activation.py CONFIG CHECKPOINT test:0 \\
    --compare CONFIG2 CHECKPOINT2 --faithfulness 200

The maps are those of the package grad-cam: pip install --no-deps -r requirements/visual.txt
"""

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path

from mmengine.config import Config
from torch import nn

with redirect_stdout(sys.stderr):
    from mmattn.analysis import cam, cam_figure
    from mmattn.analysis.config_of import config_at
    from mmattn.analysis.outputs import figure_file, titles_of
    from mmattn.analysis.pictures import enter_scope, load_model, look, picture
    from mmattn.runs.cli import add_config_arguments, check_file, one_line_errors
    from mmattn.runs.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument(
        'images',
        nargs='*',
        metavar='IMAGE',
        help="a file; china or flower (scikit-learn's); test:N, the Nth of the config's test set",
    )
    parser.add_argument(
        '--compare', nargs=2, metavar=('CONFIG2', 'CHECKPOINT2'), help='a second model beside it'
    )
    parser.add_argument('--method', help=f'one of {", ".join(cam.METHODS)}')
    parser.add_argument('--layer', help="by name (default: the backbone's last stage)")
    parser.add_argument('--target', type=int, help='class (default: the likeliest)')
    parser.add_argument(
        '--faithfulness', type=int, metavar='N', help='measure on N pictures of the test set, too'
    )
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help='resize files first')
    parser.add_argument(
        '--titles', nargs='+', help='what to call the models (default: the configs)'
    )
    parser.add_argument('--out', type=Path, default=Path('class_activation.png'))
    parser.add_argument('--device', default='cpu')
    add_config_arguments(parser)
    parser.add_argument('--trust-checkpoint', action='store_true', help='let it run code')
    parser.add_argument('--debug', action='store_true', help='show the traceback of every error')
    return parser.parse_args()


def build(args: argparse.Namespace) -> tuple[list[tuple[Config, nn.Module, cam.Cam]], list[str]]:
    """Of each model its config, weights and `Cam`."""
    pairs = [(args.config, args.checkpoint)] + ([args.compare] if args.compare else [])
    titles, found = titles_of(pairs, args.titles), []
    for config, checkpoint in pairs:
        check_file(checkpoint, 'checkpoint')
        cfg = config_at(config, args)
        model = load_model(cfg, checkpoint, args.device)
        found.append((cfg, model, cam.Cam(model, enter_scope(cfg), args.method, args.layer)))
    return found, titles


def main() -> None:
    args = parse_args()
    with one_line_errors(args.debug):
        if not args.images and not args.faithfulness:
            raise UserError('give pictures to draw, or --faithfulness N')
        if args.faithfulness is not None and args.faithfulness < 1:
            raise UserError(f'--faithfulness must be 1 or more, got {args.faithfulness}')
        if args.images:
            figure_file(args.out)
        with redirect_stdout(sys.stderr):
            models, titles = build(args)
            rows = []
            for source in args.images:
                maps = []
                for cfg, model, camera in models:
                    enter_scope(cfg)
                    seen = picture(cfg, source, args.size)
                    inputs, _ = look(model, seen)
                    maps.append(camera.look(inputs, args.target))
                words = seen.name + ('' if seen.label is None else f': class {seen.label}')
                rows.append(cam_figure.CamRow(seen.rgb, maps, words))
            faith = []
            for cfg, _, camera in models if args.faithfulness else ():
                enter_scope(cfg)
                faith.append(cam.faithfulness(camera, cfg, args.faithfulness))
        if rows:
            cam_figure.cam_figure(titles, rows).savefig(args.out)
            print(args.out)
        if faith:
            print(cam.table(titles, faith), end='')


if __name__ == '__main__':
    main()
