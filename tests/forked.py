"""Processes of their own that import nothing: they are forked from one that has imported it all.

Which costs what one process of another kind costs, once for all tests of a worker. That one has run
nothing: unlike a test's own process, it may be forked where there is a GPU, and has no threads.
"""

import importlib.util
from multiprocessing import get_context

import torch.multiprocessing

CODEBASES = [name for name in ('mmpretrain', 'mmdet', 'mmseg') if importlib.util.find_spec(name)]
context = get_context('forkserver')
context.set_forkserver_preload(['torch', 'mmattn', *(f'{name}.models' for name in CODEBASES)])


def processes(work, *args, count=2):
    """Runs `work(rank, *args)` in so many processes; raises what one of them raises."""
    torch.multiprocessing.start_processes(work, args, nprocs=count, start_method='forkserver')
