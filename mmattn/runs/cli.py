"""The parts that tools/train.py and tools/test.py share: arguments, configs, errors."""

import argparse
import difflib
import inspect
import os
import re
import signal
import sys
import threading
import traceback
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import ConfigDict, DictAction
from mmengine.registry import MODELS
from mmengine.utils import import_modules_from_strings

from mmattn import quiet
from mmattn.lines import one_line
from mmattn.papers import alternatives

from . import checkpoint, plain_config, processes, saving, signals
from .errors import FAULT, INTERRUPTED, LOST, STOPPED, USER_ERROR, Stopped, UserError

# Here and not in a function: data workers that are not forked import the tool, and so this file.
quiet.install()

# Tests put something else here; not into os, which data workers need as it is.
leave = os._exit

RANK_VARIABLES = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')


def add_config_arguments(parser):
    """What `load_config` reads besides the config's path, in every tool that reads one."""
    parser.add_argument(
        '--alternative',
        nargs='+',
        default=[],
        metavar='NAME',
        help="what a table's row might have been: see tools/check_configs.py --alternatives --list",
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override the config: key=value, key=a,b or key="[a,b]", with dots for nested keys',
    )
    parser.add_argument(
        '--data-root',
        metavar='DIR',
        help="takes the place of the config's data/ (so does MMATTN_DATA, for all commands)",
    )
    parser.add_argument(
        '--plain-config',
        action='store_true',
        help='read the config as data: no Python is run, only registered classes are built',
    )


def add_common_arguments(parser):
    """What the tools that run a model have in common."""
    add_config_arguments(parser)
    parser.add_argument(
        '--work-dir',
        help="folder for logs and checkpoints (default: the config's, or work_dirs/<config name>)",
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='let checkpoints run code: only for files that nobody but you could have written',
    )
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    # torch.distributed.launch passes it; everybody else sets LOCAL_RANK.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        '--debug',
        action='store_true',
        default=os.environ.get('MMATTN_DEBUG', '0') != '0',
        help='show the traceback of every error (so does MMATTN_DEBUG=1)',
    )


def check_file(path, what):
    """Raises UserError if a local path names no file; addresses with a scheme are left alone."""
    if '://' not in str(path) and not Path(path).is_file():
        raise UserError(f'{what} not found: {path}')


def load_config(args):
    """Reads the config of a command line and applies what the tools have in common.

    Args:
        args (argparse.Namespace): With ``config`` and the arguments of
            :func:`add_common_arguments`.

    Returns:
        Config: With ``launcher``, ``work_dir`` and ``default_scope`` set.

    Raises:
        UserError: If the file, or one it is based on, is missing or not Python, or if an
            alternative does not fit it.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    checkpoint.install(args.trust_checkpoint)
    path = Path(args.config)
    if not path.is_file():
        near = difflib.get_close_matches(
            path.name, [other.name for other in path.parent.glob('*.py')], n=1
        )
        hint = f'; did you mean {path.parent / near[0]}?' if near else ''
        raise UserError(f'config not found: {path}{hint}')
    if args.plain_config:
        if args.alternative:
            raise UserError('--alternative and --plain-config exclude each other: alternatives run')
        plain_config.restrict()
    try:
        # Imported below, where a missing module is not blamed on the config's syntax.
        cfg = (
            plain_config.load(path)
            if args.plain_config
            else alternatives.combine(path, args.alternative)
        )
    except (alternatives.AlternativeError, plain_config.PlainConfigError) as error:
        raise UserError(str(error)) from error
    except SyntaxError as error:
        # mmengine does not always say which file, and keeps Python's own error as the context.
        cause = error.__context__ if isinstance(error.__context__, SyntaxError) else error
        raise UserError(f'{_file_read(error, path)}:{cause.lineno}: {cause.msg}') from error
    except FileNotFoundError as error:
        raise UserError(f'{path}: a base config is missing: {error.filename or error}') from error
    except Exception as error:
        raise UserError(f'{path}: {type(error).__name__}: {error}') from error
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    move_data(cfg, getattr(args, 'data_root', None))
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        names = list(args.alternative)
        if getattr(args, 'pretrained', None):
            names.append('pretrained')  # is the alternative of that name, even if unnamed
        cfg.work_dir = str(Path('work_dirs') / alternatives.combined_name(path, names))
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if cfg.get('default_scope') == 'mmdet':
        from mmdet.utils import setup_cache_size_limit_of_dynamo

        setup_cache_size_limit_of_dynamo()
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name):
            cfg[name] = _with_loader_defaults(cfg[name], cfg.get('default_scope'))
    return cfg


def move_data(cfg, root=None):
    """Lets data sets and evaluators of a config read below `root` what they read below `data/`.

    Args:
        cfg (Config): Changed in place; paths that do not begin with `data/` stay.
        root (str, optional): By default what MMATTN_DATA says; without it nothing is changed.

    Raises:
        UserError: If there is no such folder.
    """
    name, root = ('--data-root', root) if root else ('MMATTN_DATA', os.environ.get('MMATTN_DATA'))
    if not root:
        return
    root = os.path.expanduser(root)
    if not os.path.isdir(root):
        raise UserError(f'{name}: there is no folder {root}')

    def moved(item):
        if isinstance(item, dict):
            return {key: moved(value) for key, value in item.items()}
        if isinstance(item, (list, tuple)):
            return type(item)(map(moved, item))
        if isinstance(item, str) and (item == 'data' or item.startswith('data/')):
            return root + item[len('data') :]
        return item

    for split in ('train', 'val', 'test'):
        for name in (f'{split}_dataloader', f'{split}_evaluator'):
            if cfg.get(name):
                cfg[name] = moved(cfg.get(name))


def _file_read(error, path):
    """The config file that mmengine's reader was at when it raised the error."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = str(frame.f_locals.get('filename', ''))
        if name.endswith('.py'):
            path = os.path.normpath(name)
    return path


def _with_loader_defaults(loader, scope):
    loader = ConfigDict(loader)
    if scope == 'mmpretrain':
        # What mmpretrain's own tools add to every loader.
        loader.setdefault('collate_fn', dict(type='default_collate'))
        loader.setdefault('persistent_workers', True)
    if not loader.get('num_workers'):
        # PyTorch refuses it without workers.
        loader.persistent_workers = False
    return loader


def rank():
    """This process's number among all, before they have met; 0 for what is no number, of which
    they will hear when they meet."""
    text = next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), '0')
    return int(text) if text.isascii() and text.isdigit() else 0


def describe(error):
    """What an exception says, in one line that a terminal can be given."""
    return one_line(_described(error), most=4000)


def _described(error):
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if 'EADDRINUSE' in text:
        return f'port {os.environ.get("MASTER_PORT")} is in use'
    if isinstance(error, FileNotFoundError) and error.filename:
        return f'not found: {error.filename}'
    # Errors of data loader workers carry a traceback, at whose end they say what they are.
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ['']
    text = lines[-1] if lines[0].startswith('Caught ') else ' '.join(lines)
    text = text.removeprefix(f'{UserError.__module__}.UserError: ')
    if saving.is_full(error):
        return f'{error.strerror}: {error.filename or "while writing to the work directory"}'
    if not text:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = f'{type(error).__name__} in {frame.filename}:{frame.lineno}: {frame.line}'
    elif not isinstance(error, (ValueError, UserError, OSError, RuntimeError)):
        text = f'{type(error).__name__}: {text}'
    unexpected = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text)
    if unexpected:
        text += _allowed_arguments(unexpected.group(1))
    return text


def _allowed_arguments(name):
    cls = MODELS.get(name)
    if cls is None:
        return ''
    parameters = list(inspect.signature(cls).parameters)
    return f' (allowed: {", ".join(parameters)})'


@contextmanager
def one_line_errors(debug):
    """Turns errors of the set-up into one line on stderr and exit code 2.

    Yields an object whose ``runner`` the tool sets once it has one. Errors after the runner's first
    iteration has begun are faults of the program and keep their traceback, but for missing files,
    full disks and errors that are the user's to mend. Of several processes only the first prints
    what all of them meet.
    Ctrl-C ends with code 130, SIGTERM and SIGUSR2 with 75.

    Args:
        debug (bool): Whether to let every exception through.
    """

    class State:
        runner = None
        interrupted = False

    def interrupt(signum, frame):
        State.interrupted = True
        raise KeyboardInterrupt

    def excepthook(kind, error, trace):
        # A thread of a data worker, which inherits this, that finds us gone after Ctrl-C.
        if threading.current_thread() is threading.main_thread() or not issubclass(
            kind, (ConnectionError, EOFError)
        ):
            hook(kind, error, trace)

    before = signal.signal(signal.SIGINT, interrupt)
    hook, sys.excepthook = sys.excepthook, excepthook
    try:
        with signals.request.heard() as request:
            yield State
    except (Exception, KeyboardInterrupt, Stopped) as error:
        # What fails on the way out (workers or other processes have gone first) is no error.
        if State.interrupted or isinstance(error, KeyboardInterrupt):
            message, code = f'\ninterrupted{_resume_hint(State.runner)}', INTERRUPTED
        elif request.signum is not None:
            message = f'stopped by {request.name}{_resume_hint(State.runner)}'
            code = STOPPED
        elif isinstance(error, Stopped):  # by a signal to another process
            message, code = f'stopped{_resume_hint(State.runner)}', STOPPED
        elif not debug and processes.is_lost(error):
            message, code = None, processes.announced() or LOST
            if os.environ['LOCAL_RANK'] == '0' and code == LOST:
                print(f'error: another process is lost: {describe(error)}', file=sys.stderr)
        elif debug or not _is_users(error, State.runner):
            if 'MMATTN_ATTEMPT' not in os.environ:
                raise
            message, code = None, _report_fault(State.runner)
        else:
            hint = '' if isinstance(error, UserError) else ' (--debug shows the traceback)'
            message, code = f'error: {describe(error)}{hint}', USER_ERROR
        if message is not None:
            alone = isinstance(error, UserError) and _begun(State.runner) and not error.everywhere
            if alone or rank() == 0:
                print(message, file=sys.stderr)
            processes.announce(code)
    else:
        return
    finally:
        signal.signal(signal.SIGINT, before)
        sys.excepthook = hook
    # The other processes may be waiting in a collective call: no goodbyes.
    sys.stdout.flush()
    sys.stderr.flush()
    leave(code)


def _begun(runner):
    return runner is not None and runner.progress.begun


def _is_users(error, runner):
    """Whether the user can mend an error, to whom a traceback says nothing."""
    mendable = isinstance(error, (UserError, FileNotFoundError)) or saving.is_full(error)
    return mendable or not _begun(runner)


def _report_fault(runner):
    """Prints the traceback of a process among others, in one piece.

    Returns:
        int: The exit code: that of another process which has ended on purpose; or that of a fault
        which a restart will not mend, if no step was done.
    """
    code = processes.announced()
    if code is not None:
        return code
    text = f'process {rank()}:\n{traceback.format_exc()}'
    sys.stderr.flush()
    os.write(2, text.encode())
    return 1 if runner is not None and runner.progress.steps else FAULT


def _resume_hint(runner):
    if runner is None or runner.train_dataloader is None:
        return ''
    last = saving.pointed(runner.work_dir)
    if last is None:
        return '; there is no checkpoint yet'
    return f'; --resume goes on from {last}'
