"""Trains a model of mmpretrain, mmdetection or mmsegmentation."""

import argparse
import os
from contextlib import ExitStack, suppress

from mmengine.config import Config
from mmengine.device import get_device

from mmattn.analysis.hooks import log_gates
from mmattn.papers import config_name, entries
from mmattn.papers.alternatives import row_of, start_from
from mmattn.runs import Runner, locks, measure, processes, recording, saving
from mmattn.runs.cli import (
    UserError,
    add_common_arguments,
    check_file,
    load_config,
    one_line_errors,
    rank,
)


def count(text: str) -> int:
    """A number of things, from the command line."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f'must be a number from 0 on, got {text!r}')
    return int(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint, or from the last one in the work directory',
    )
    parser.add_argument(
        '--pretrained',
        metavar='CHECKPOINT',
        help='start the backbone, gates and all, from a checkpoint of an ImageNet network with the '
        'same gates: of the config that paper_tables.yml names as pretrained for a row',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision: float16 on a GPU, bfloat16 in the backbone on a CPU',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by the actual over the config's base batch size",
    )
    parser.add_argument('--no-validate', action='store_true', help='train only')
    parser.add_argument(
        '--skip-nonfinite',
        type=count,
        default=0,
        metavar='N',
        help='leave out up to N batches whose loss is not finite, instead of stopping at the first',
    )
    parser.add_argument(
        '--max-unreadable',
        type=count,
        metavar='N',
        help='how many images that cannot be read may be left out before the training stops '
        '(default: one in a thousand, and ten in any case)',
    )
    parser.add_argument('--seed', type=count, metavar='N', help='of all random numbers')
    parser.add_argument(
        '--record',
        action='store_true',
        help='keep record.json in the work directory, as tools/reproduce.py lets its runs do: what '
        'was trained, how it went, what came out (needs --seed)',
    )
    parser.add_argument(
        '--log-gates',
        type=count,
        default=0,
        metavar='N',
        help="log every N iterations what the gates do, and CAT's colla-factors, to the "
        "config's visualizer (default: never)",
    )
    parser.add_argument(
        '--measure',
        metavar='FILE',
        help='only time a few dozen iterations; FILE (JSON) says what follows for the whole',
    )
    add_common_arguments(parser)
    return parser.parse_args()


def merge_args(cfg: Config, args: argparse.Namespace) -> None:
    """Applies the command line to the config."""
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        if get_device() == 'cpu':
            cfg.optim_wrapper.type = 'CPUAmpOptimWrapper'
            cfg.optim_wrapper.pop('loss_scale', None)
        else:
            cfg.optim_wrapper.type = 'AmpOptimWrapper'
            cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError(f'--auto-scale-lr needs auto_scale_lr.base_batch_size in {args.config}')
        cfg.auto_scale_lr.enable = True
    if args.pretrained is not None:
        check_file(args.pretrained, 'checkpoint')
        start_from(cfg, args.pretrained)
    elif 'pretrained' in args.alternative:
        config = row_of(args.config)
        row = next(entry.pretrained for entry in entries() if entry.config == config)
        raise UserError(f'--alternative pretrained needs --pretrained CHECKPOINT, one of {row}')
    if args.seed is not None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=args.seed)
    if args.record:
        if args.seed is None:
            raise UserError('--record needs --seed N')
        config, root = config_name(args.config), args.data_root or os.environ.get('MMATTN_DATA')
        names = {*args.alternative, *(['pretrained'] if args.pretrained else [])}
        recording.ask(cfg, config, sorted(names), args.seed, root, args.pretrained)
    if args.log_gates:
        log_gates(cfg, args.log_gates)
    if args.measure is not None:
        if args.record or args.resume:
            raise UserError('--measure is no training: it goes without --record and --resume')
        measure.ask(cfg, args.measure)
    if args.resume == 'auto':
        cfg.resume, cfg.load_from = True, None
    elif args.resume is not None:
        check_file(args.resume, 'checkpoint')
        cfg.resume, cfg.load_from = True, args.resume
    cfg.skip_nonfinite, cfg.max_unreadable = args.skip_nonfinite, args.max_unreadable
    if processes.attempt() > 0 and saving.pointed(cfg.work_dir):
        # The launcher has started us again: on from the last checkpoint, wherever we began.
        cfg.resume, cfg.load_from = True, None


def main() -> None:
    args = parse_args()
    with one_line_errors(args.debug) as state:
        cfg = load_config(args)
        with ExitStack() as stack:
            if rank() == 0:
                stack.enter_context(locks.owning(cfg.work_dir, 'a training'))
            merge_args(cfg, args)
            if rank() == 0:
                # A checkpoint that is named takes the place of the last one when it is loaded.
                saving.begin(cfg.work_dir, resumed=cfg.get('resume') and cfg.load_from is None)
            state.runner = Runner.from_cfg(cfg)
            with suppress(measure.Measured):
                state.runner.train()


if __name__ == '__main__':
    main()
