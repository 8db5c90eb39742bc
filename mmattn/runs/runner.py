import os

import torch
from mmengine.dist import is_distributed
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import RUNNERS
from mmengine.runner import Runner as MMEngineRunner
from mmengine.runner import find_latest_checkpoint

from mmattn import mmcv_ops
from mmattn.registry import register

from . import processes
from .hooks import ProgressHook
from .seeding import SeedIterationHook, seeded


@register(RUNNERS, name='mmattn.Runner')
class Runner(MMEngineRunner):
    """mmengine's runner that also runs in several processes without GPUs, and resumes exactly.

    - Without CUDA the processes of a launcher talk through gloo, and SyncBN becomes BN, as it has
      no CPU form.
    - Training that was killed and resumed ends with the weights of uninterrupted training (see
      :mod:`mmattn.runs.seeding`), as far as the device computes deterministically and the
      checkpoints lie at the end of an epoch (or at any iteration, in iteration-based training).

    Arguments are mmengine's, as keywords.
    """

    def __init__(self, **kwargs):
        kwargs['train_dataloader'] = seeded(kwargs.get('train_dataloader'))
        if kwargs.get('resume'):
            kwargs['randomness'] = self._resumed_randomness(**kwargs)
        super().__init__(**kwargs)
        self.logger.info(mmcv_ops.in_use())
        self.progress = ProgressHook()
        self.register_hook(self.progress)
        self.register_hook(SeedIterationHook())

    @staticmethod
    def _resumed_randomness(work_dir, load_from=None, randomness=None, **_):
        # mmengine takes the seed over from the checkpoint as well, but after it has given another
        # one to the sampler.
        randomness = dict(randomness or {})
        checkpoint = load_from or find_latest_checkpoint(work_dir)
        if randomness.get('seed') is None and checkpoint and os.path.isfile(checkpoint):
            meta = torch.load(checkpoint, map_location='cpu', mmap=True, weights_only=False)['meta']
            randomness['seed'] = meta.get('seed')
        return randomness

    def setup_env(self, env_cfg):
        if self.distributed and not is_distributed():
            dist_cfg = processes.join(self.launcher, env_cfg.get('dist_cfg', {}))
            env_cfg = {**env_cfg, 'dist_cfg': dist_cfg}
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg, model):
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
