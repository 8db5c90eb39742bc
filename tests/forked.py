"""Processes of their own that import nothing: they are forked from one that has imported it all.

Which costs what one process of another kind costs, once for all tests of a worker. That one has run
nothing: unlike a test's own process, it may be forked where there is a GPU, and has no threads.
"""

import importlib.util
import os
import runpy
import sys
from multiprocessing import get_context

import torch.multiprocessing

CODEBASES = [name for name in ('mmpretrain', 'mmdet', 'mmseg') if importlib.util.find_spec(name)]
context = get_context('forkserver')
context.set_forkserver_preload(['torch', 'mmattn', *(f'{name}.models' for name in CODEBASES)])


def processes(work, *args, count=2):
    """Runs `work(rank, *args)` in so many processes; raises what one of them raises."""
    torch.multiprocessing.start_processes(work, args, nprocs=count, start_method='forkserver')


def alone(log, work, *args, seconds=240):
    """Runs `work(*args)` in a process whose output goes to the file `log`: its exit code."""
    process = context.Process(target=_logged, args=(log, work, *args))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


def _logged(log, work, *args):
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    work(*args)


def script(path, *args, imports=(), **variables):
    """Runs a file of Python as `python` does, with folders to import from and variables more."""
    os.environ.update(variables)
    sys.path[:0] = map(str, imports)
    sys.argv = [str(path), *map(str, args)]
    runpy.run_path(str(path), run_name='__main__')
