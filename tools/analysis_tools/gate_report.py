"""Which gates of a trained model do something: their spread, and what is lost without each.

python tools/analysis_tools/gate_report.py CHECKPOINT
python tools/analysis_tools/gate_report.py CHECKPOINT CONFIG --images 500 --out report.json

Each gate is replaced by its mean, one number for each channel, and the test set is run again.
"""

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

# Some codebases print while they are imported; standard output is for the result alone.
with redirect_stdout(sys.stderr):
    from mmattn.analysis import gate_report
    from mmattn.analysis.config_of import config_for
    from mmattn.analysis.outputs import folder
    from mmattn.analysis.pictures import load_model
    from mmattn.runs.atomic import write_text
    from mmattn.runs.cli import add_config_arguments, check_file, one_line_errors
    from mmattn.runs.errors import UserError


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('checkpoint')
    parser.add_argument('config', nargs='?', help='default: the one that the checkpoint carries')
    parser.add_argument(
        '--images', type=int, help='the first so many of the test set (default: all)'
    )
    parser.add_argument('--metric', help="one of the evaluator's (default: the task's main one)")
    parser.add_argument('--no-metric', action='store_true', help='gates and features alone')
    parser.add_argument('--out', type=Path, help='a .json or .md file (default: print the table)')
    parser.add_argument('--workers', type=int, default=0, help='processes that load data')
    parser.add_argument('--device', default='cpu')
    add_config_arguments(parser)
    parser.add_argument('--trust-checkpoint', action='store_true', help='let it run code')
    parser.add_argument('--debug', action='store_true', help='show the traceback of every error')
    return parser.parse_args()


def main():
    args = parse_args()
    with one_line_errors(args.debug):
        if args.images is not None and args.images < 1:
            raise UserError(f'--images must be 1 or more, got {args.images}')
        if args.out and args.out.suffix not in ('.json', '.md'):
            raise UserError(f'--out must end in .json or .md, got {args.out}')
        if args.out:
            folder(args.out.parent)
        check_file(args.checkpoint, 'checkpoint')
        with redirect_stdout(sys.stderr):
            cfg = config_for(args.config, args.checkpoint, args)
            model = load_model(cfg, args.checkpoint, args.device)
            trial = gate_report.Trial(
                cfg, model, args.images, args.workers, args.metric, not args.no_metric
            )
            whole = gate_report.report(trial, lambda text: print(text, file=sys.stderr))
        table = gate_report.markdown(whole)
        if args.out:
            as_json = args.out.suffix == '.json'
            write_text(args.out, json.dumps(whole.as_dict(), indent=2) + '\n' if as_json else table)
            print(f'wrote {args.out}', file=sys.stderr)
        else:
            sys.stdout.write(table)


if __name__ == '__main__':
    main()
