import os
import socket
import subprocess
from pathlib import Path

import torch
from mmengine.dist import is_distributed
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import RUNNERS
from mmengine.runner import Runner as MMEngineRunner
from mmengine.runner import find_latest_checkpoint
from torch import distributed

from mmattn import mmcv_ops
from mmattn.registry import register

from . import checkpoint
from .hooks import ProgressHook
from .seeding import SeedIterationHook, seeded


def init_cpu_processes(launcher):
    """Joins the processes of a launcher with gloo.

    mmengine's own start binds every process to a GPU, whatever the backend.

    Args:
        launcher (str): 'pytorch' (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are
            set), 'slurm' or 'mpi' (Open MPI).
    """
    env = os.environ
    if launcher == 'slurm':
        env.update(
            RANK=env['SLURM_PROCID'],
            WORLD_SIZE=env['SLURM_NTASKS'],
            LOCAL_RANK=env['SLURM_LOCALID'],
        )
        if 'MASTER_ADDR' not in env:
            env['MASTER_ADDR'] = subprocess.run(
                ['scontrol', 'show', 'hostnames', env['SLURM_NODELIST']],
                check=True,
                text=True,
                capture_output=True,
            ).stdout.split()[0]
    elif launcher == 'mpi':
        env.update(
            RANK=env['OMPI_COMM_WORLD_RANK'],
            WORLD_SIZE=env['OMPI_COMM_WORLD_SIZE'],
            LOCAL_RANK=env['OMPI_COMM_WORLD_LOCAL_RANK'],
        )
        env.setdefault('MASTER_ADDR', '127.0.0.1')
    env.setdefault('MASTER_PORT', '29500')
    # gloo looks up the machine's own name, which need not resolve on a machine alone.
    interfaces = [name for _, name in socket.if_nameindex()]
    if env['MASTER_ADDR'] in ('127.0.0.1', 'localhost') and 'lo' in interfaces:
        env.setdefault('GLOO_SOCKET_IFNAME', 'lo')
    distributed.init_process_group('gloo')


@register(RUNNERS, name='mmattn.Runner')
class Runner(MMEngineRunner):
    """mmengine's runner that also runs in several processes without GPUs, and resumes exactly.

    - Without CUDA the processes of a launcher talk through gloo, and SyncBN becomes BN, as it has
      no CPU form.
    - Training that was killed and resumed ends with the weights of uninterrupted training (see
      :mod:`mmattn.runs.seeding`), as far as the device computes deterministically and the
      checkpoints lie at the end of an epoch (or at any iteration, in iteration-based training).
    - Checkpoints are read as data and run no code (see :mod:`mmattn.runs.checkpoint`).

    Arguments are mmengine's, as keywords.
    """

    def __init__(self, **kwargs):
        checkpoint.install()
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
        path = load_from or find_latest_checkpoint(work_dir)
        if randomness.get('seed') is None and path and os.path.isfile(path):
            randomness['seed'] = checkpoint.load_meta(path).get('seed')
        return randomness

    def resume(self, *args, **kwargs):
        super().resume(*args, **kwargs)
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

    def setup_env(self, env_cfg):
        if self.distributed and not is_distributed() and not torch.cuda.is_available():
            init_cpu_processes(self.launcher)
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
