"""How the processes of a launcher meet."""

import os
import socket
import subprocess
import time
from contextlib import suppress
from typing import Any

import torch
from torch import distributed


def attempt_store() -> distributed.Store | None:
    """The store of this attempt of tools/dist_*.sh, or None if another launcher has started us.

    All attempts of a launch share its server. Each has a prefix, as it would find the addresses of
    processes that are dead otherwise.
    """
    env = os.environ
    if 'MMATTN_ATTEMPT' not in env or env.get('TORCHELASTIC_USE_AGENT_STORE') != 'True':
        return None
    server = distributed.TCPStore(
        env['MASTER_ADDR'], int(env['MASTER_PORT']), is_master=False, wait_for_workers=False
    )
    return distributed.PrefixStore(f'workers_{env["MMATTN_ATTEMPT"]}', server)


def attempt() -> int:
    """How often tools/dist_*.sh have started this process's work before."""
    return int(os.environ.get('MMATTN_ATTEMPT', 0))


def announce(code: int) -> None:
    """Tells the other processes of this attempt with which exit code this one ends on purpose."""
    with suppress(RuntimeError):
        store = attempt_store()
        if store is not None:
            store.set('end', str(code))


def announced(seconds: float = 1) -> int | None:
    """The exit code with which another process of this attempt has ended on purpose, or None.

    Whoever loses the connection to it need not say so.

    Args:
        seconds (float): How long to wait for it.
    """
    with suppress(RuntimeError):
        store, deadline = attempt_store(), time.monotonic() + seconds
        while store is not None:
            if store.check(['end']):
                return int(store.get('end'))
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
    return None


def is_lost(error: BaseException) -> bool:
    """Whether an error tells of the end of another process, of which the launcher tells better."""
    return 'MMATTN_ATTEMPT' in os.environ and (
        isinstance(error, distributed.DistError)
        or (isinstance(error, RuntimeError) and 'gloo' in str(error))
    )


def group_options() -> dict[str, Any]:
    """Arguments of `init_process_group` for the store of this attempt."""
    store = attempt_store()
    if store is None:
        return {}
    return dict(store=store, rank=int(os.environ['RANK']), world_size=int(os.environ['WORLD_SIZE']))


def join(launcher: str, dist_cfg: dict[str, Any]) -> dict[str, Any]:
    """Joins the processes of a launcher with gloo if there is no GPU.

    mmengine's own start binds every process to a GPU, whatever the backend.

    Args:
        launcher (str): 'pytorch' (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are
            set), 'slurm' or 'mpi' (Open MPI).
        dist_cfg (dict): `env_cfg.dist_cfg` of the config.

    Returns:
        dict: What mmengine needs as `dist_cfg`, if it still has to join them.
    """
    options = group_options() if launcher == 'pytorch' else {}
    if torch.cuda.is_available():
        return {**dist_cfg, **options}
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
    distributed.init_process_group('gloo', **options)
    return dist_cfg
