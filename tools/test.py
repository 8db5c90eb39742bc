"""Tests a checkpoint of mmpretrain, mmdetection or mmsegmentation."""

import argparse
import copy
from contextlib import ExitStack
from pathlib import Path

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process

from mmattn.runs import Runner, locks
from mmattn.runs.cli import (
    UserError,
    add_common_arguments,
    check_file,
    load_config,
    one_line_errors,
    rank,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument(
        '--out',
        help='.json for the metrics, .pkl for the predictions; '
        'for segmentation also a folder for the predicted masks',
    )
    parser.add_argument('--show-dir', help='folder for pictures of the predictions')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    add_common_arguments(parser)
    return parser.parse_args()


def add_visualization(cfg: Config, folder: str) -> None:
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UserError('--show-dir needs default_hooks.visualization in the config')
    if cfg.default_scope == 'mmpretrain':
        hook.update(enable=True, interval=1, out_dir=folder)
    elif cfg.default_scope == 'mmdet':
        hook.update(draw=True, test_out_dir=folder)
    else:
        hook.update(draw=True, interval=1)
        cfg.visualizer.save_dir = folder


def add_tta(cfg: Config) -> None:
    """Wraps the model for test-time augmentation: the config's own, or the mean over flips."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        pack = copy.deepcopy(dataset.pipeline[-1])
        if cfg.default_scope == 'mmpretrain':
            cfg.tta_model = dict(type='AverageClsScoreTTA')
        elif cfg.default_scope == 'mmdet':
            cfg.tta_model = dict(
                type='DetTTAModel',
                tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
            )
            # The merge has to know what to flip back.
            pack.meta_keys = (*pack.meta_keys, 'flip', 'flip_direction')
        else:
            cfg.tta_model = dict(type='SegTTAModel')
        flips = [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
        cfg.tta_pipeline = [
            *dataset.pipeline[:-1],
            dict(type='TestTimeAug', transforms=[flips, [pack]]),
        ]
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def add_output(cfg: Config, out: str) -> None:
    """Adds what writes predictions; metrics are written at the end."""
    kind = Path(out).suffix
    if kind == '.json':
        return
    if kind in ('.pkl', '.pickle'):
        evaluators = cfg.test_evaluator
        evaluators = [evaluators] if isinstance(evaluators, dict) else list(evaluators)
        dump = 'DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
        cfg.test_evaluator = [*evaluators, dict(type=dump, out_file_path=out)]
    elif cfg.default_scope == 'mmseg' and not kind:
        cfg.test_evaluator.update(output_dir=out, keep_results=True)
    else:
        raise UserError(f'--out must end in .json or .pkl, got {out}')


def main() -> None:
    args = parse_args()
    with one_line_errors(args.debug) as state:
        cfg = load_config(args)
        check_file(args.checkpoint, 'checkpoint')
        cfg.load_from = args.checkpoint
        cfg.resume = False
        if args.show_dir:
            add_visualization(cfg, args.show_dir)
        if args.tta:
            add_tta(cfg)
        if args.out:
            add_output(cfg, args.out)
        with ExitStack() as stack:
            if rank() == 0:
                stack.enter_context(locks.owning(cfg.work_dir, 'a test'))
            state.runner = Runner.from_cfg(cfg)
            metrics = state.runner.test()
            if args.out and args.out.endswith('.json') and is_main_process():
                mmengine.dump({key: float(value) for key, value in metrics.items()}, args.out)


if __name__ == '__main__':
    main()
