import os
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop
from mmengine.runner import Runner as MMEngineRunner
from torch import nn

from mmattn import mmcv_ops
from mmattn.hosts.decay import spare_identity_scales
from mmattn.hosts.fresh import FreshGatesHook, gates_before, warn_of_fresh
from mmattn.hosts.plug import plug_entries
from mmattn.ops.native import build
from mmattn.registry import register

from . import atomic, checkpoint, measure, processes, recording, saving, unreadable
from .errors import UserError
from .hooks import ProgressHook
from .loops import resumable
from .nonfinite import NonFiniteHook
from .seeding import SeedIterationHook, seeded
from .signals import StopHook


@register(RUNNERS, name='mmattn.Runner')
class Runner(MMEngineRunner):
    """mmengine's runner for long trainings, with or without GPUs.

    - Without CUDA the processes of a launcher talk through gloo, and SyncBN becomes BN, as it has
      no CPU form.
    - Training that was cut off anywhere and resumed ends with the weights of uninterrupted training
      (see :mod:`mmattn.runs.seeding` and :mod:`mmattn.runs.loops`), as far as the device computes
      deterministically.
    - Checkpoints are whole or not there (:mod:`mmattn.runs.saving`), and are read as data and run
      no code (:mod:`mmattn.runs.checkpoint`).
    - Signals, losses and gradients that are not finite, and images that cannot be read end in words
      (:mod:`mmattn.runs.signals`, :mod:`mmattn.runs.nonfinite`, :mod:`mmattn.runs.unreadable`).
      ``skip_nonfinite`` and ``max_unreadable`` in the config are how many of the latter two it
      takes.
    - With ``plug`` in the config it puts gates behind modules of the model
      (:mod:`mmattn.hosts.plug`); factors by which gates start as the identity do not decay, and
      must not be frozen (:mod:`mmattn.hosts.fresh`).
    - With ``record`` in the config it keeps a record of itself (:mod:`mmattn.runs.recording`); with
      ``measure`` it is a trial that ends soon (:mod:`mmattn.runs.measure`).

    Arguments are mmengine's, as keywords.
    """

    warns_of_fresh = True  # in `load_checkpoint`, of gates that are not in what it loads

    def __init__(self, **kwargs: Any) -> None:
        checkpoint.install()
        report = os.path.join(kwargs['work_dir'], unreadable.NAME)
        kwargs['train_dataloader'] = seeded(kwargs.get('train_dataloader'), report)
        faults: list[str] = []
        if kwargs.get('resume') and kwargs.get('load_from') is None:
            kwargs['load_from'], faults = saving.last_whole(kwargs['work_dir'])
        if kwargs.get('resume'):
            kwargs['randomness'] = self._resumed_randomness(**kwargs)
        super().__init__(**kwargs)
        self.logger.info(mmcv_ops.in_use())
        for fault in faults:
            goes_on = f'resuming from {self._load_from}' if self._load_from else 'beginning anew'
            self.logger.warning(f'{fault}; {goes_on}')
        self.progress = ProgressHook()
        for hook in (
            self.progress,
            SeedIterationHook(),
            NonFiniteHook(self.cfg.get('skip_nonfinite', 0)),
            unreadable.UnreadableImagesHook(report, self.cfg.get('max_unreadable')),
            FreshGatesHook(),
            StopHook(),
        ):
            self.register_hook(hook)
        if self.cfg.get('record'):
            self.register_hook(recording.RecordHook(self.cfg.record.to_dict()))
        if self.cfg.get('measure'):
            self.register_hook(measure.MeasureHook(**self.cfg.measure))

    def train(self) -> nn.Module:
        try:
            with recording.kept(self):
                return super().train()
        finally:
            self._end_data_workers()

    def _end_data_workers(self) -> None:
        """Ends workers that persist while their queues are whole.

        Left to the collector of garbage, which may take a queue first, PyTorch waits 5 seconds for
        each of them in vain.
        """
        for loop in (self._train_loop, self._val_loop):
            loader: Any = getattr(loop, 'dataloader', None)
            if getattr(loader, '_iterator', None) is not None:
                loader._iterator = None

    @staticmethod
    def _resumed_randomness(
        load_from: str | None = None, randomness: dict[str, Any] | None = None, **_: Any
    ) -> dict[str, Any]:
        # mmengine takes the seed over from the checkpoint as well, but after it has given another
        # one to the sampler.
        randomness = dict(randomness or {})
        if randomness.get('seed') is None and load_from and os.path.isfile(load_from):
            randomness['seed'] = checkpoint.load_meta(load_from).get('seed')
        return randomness

    def load_or_resume(self) -> None:
        super().load_or_resume()
        if not is_distributed():
            return
        places = all_gather_object(self.iter)
        if len(set(places)) > 1:
            other = next(number for number, place in enumerate(places) if place != places[0])
            raise UserError(
                f'process 0 goes on from iteration {places[0]} and process {other} from '
                f'{places[other]}: all machines must see the same checkpoints in {self.work_dir}',
                everywhere=True,
            )

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        super().resume(filename, *args, **kwargs)
        if is_main_process() and saving.pointed(self.work_dir) != filename:
            # Whoever goes on from here before there is a new one begins at the same place.
            address = filename if '://' in filename else os.path.abspath(filename)
            atomic.write_text(Path(self.work_dir) / saving.POINTER, address)
        # CheckpointHook deletes what these name when there is something better or newer, folders
        # too: they must be checkpoints of this run.
        info, folder = self.message_hub.runtime_info, Path(self.work_dir).resolve()
        for key in [key for key in info if key.startswith(('best_ckpt', 'last_ckpt'))]:
            path = Path(str(info[key])).resolve()
            if folder not in path.parents or path.suffix != '.pth':
                self.logger.warning(f'{key} is no checkpoint in {folder}, so forgotten: {path}')
                info.pop(key)
        ids = info.get('keep_ckpt_ids', [])
        if not (isinstance(ids, list) and all(type(number) is int for number in ids)):
            info.pop('keep_ckpt_ids')

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        if self.distributed and not is_distributed():
            dist_cfg = processes.join(self.launcher, env_cfg.get('dist_cfg', {}))
            env_cfg = {**env_cfg, 'dist_cfg': dist_cfg}
        super().setup_env(env_cfg)

    def build_model(self, model: nn.Module | dict[str, Any]) -> nn.Module:
        built = super().build_model(model)
        inner = built.module if isinstance(built, BaseTTAModel) else built
        for place in plug_entries(inner, self.cfg.get('plug') or ()):
            self.logger.info(f'plugged: {", ".join(place.gates)} behind {place}')
        return built

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict[str, Any]) -> OptimWrapper:
        built = super().build_optim_wrapper(optim_wrapper)
        spare_identity_scales(self.model, built)
        return built

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        before = gates_before(self.model)
        checkpoint = super().load_checkpoint(filename, *args, **kwargs)
        warn_of_fresh(before)
        return checkpoint

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        if self.distributed and not torch.cuda.is_available() and not is_model_wrapper(model):
            if any('SyncBatchNorm' in type(module).__name__ for module in model.modules()):
                self.logger.warning(
                    'SyncBN becomes BN, as CPUs have none: each process uses its own statistics.'
                )
            model = revert_sync_batchnorm(model)
            model_wrapper_cfg = {
                'type': 'MMDistributedDataParallel',
                'broadcast_buffers': False,
                'find_unused_parameters': self.cfg.get('find_unused_parameters', False),
                **(model_wrapper_cfg or {}),
                'device_ids': None,
            }
        return super().wrap_model(model_wrapper_cfg, model)

    def build_train_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        return super().build_train_loop(resumable(loop))

    def register_default_hooks(self, hooks: dict[str, Hook | dict[str, Any]] | None = None) -> None:
        super().register_default_hooks(saving.with_whole_checkpoints(hooks))

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if not is_main_process() or '://' in str(out_dir) or file_client_args is not None:
            return super().save_checkpoint(out_dir, filename, file_client_args, **options)
        run = saving.run_of(self.work_dir)
        if run is not None:
            options['meta'] = {**(options.get('meta') or {}), 'run': run}
        if kernels := build.in_use():  # whose bits are those of this level of processors alone
            options['meta'] = {**(options.get('meta') or {}), 'cpu_kernels': kernels}
        with atomic.replacing(os.path.join(out_dir, filename)) as temporary:
            super().save_checkpoint(out_dir, temporary.name, **options)
