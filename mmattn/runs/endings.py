"""How a tool ends: errors in one line, signals, and the exit codes that tell them apart."""

import inspect
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, NoReturn

from mmengine.registry import MODELS

from mmattn.lines import one_line

from . import processes, saving, signals
from .errors import FAULT, INTERRUPTED, LOST, STOPPED, USER_ERROR, Stopped, UserError

if TYPE_CHECKING:
    from .runner import Runner

# Tests put something else here; not into os, which data workers need as it is.
leave = os._exit

RANK_VARIABLES = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')


def rank() -> int:
    """This process's number among all, before they have met; 0 for what is no number, of which
    they will hear when they meet."""
    text = next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), '0')
    return int(text) if text.isascii() and text.isdigit() else 0


def describe(error: BaseException) -> str:
    """What an exception says, in one line that a terminal can be given."""
    return one_line(_described(error), most=4000)


def _described(error: BaseException) -> str:
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


def _allowed_arguments(name: str) -> str:
    cls = MODELS.get(name)
    if cls is None:
        return ''
    parameters = list(inspect.signature(cls).parameters)
    return f' (allowed: {", ".join(parameters)})'


@dataclass
class Session:
    """What is known of a tool that runs.

    Attributes:
        runner (Runner, optional): Set by the tool once it has one.
        interrupted (bool): Whether Ctrl-C has been pressed.
    """

    runner: 'Runner | None' = None
    interrupted: bool = False


@contextmanager
def one_line_errors(debug: bool) -> Iterator[Session]:
    """Turns errors of the set-up into one line on stderr and exit code 2.

    Yields a `Session`, whose ``runner`` the tool sets once it has one. Errors after the runner's
    first iteration has begun are faults of the program and keep their traceback, but for missing
    files, full disks and errors that are the user's to mend. Of several processes only the first
    prints what all of them meet.
    Ctrl-C ends with code 130, SIGTERM and SIGUSR2 with 75.

    Args:
        debug (bool): Whether to let every exception through.
    """
    session = Session()

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        session.interrupted = True
        raise KeyboardInterrupt

    def excepthook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        # A thread of a data worker, which inherits this, that finds us gone after Ctrl-C.
        if threading.current_thread() is threading.main_thread() or not issubclass(
            kind, (ConnectionError, EOFError)
        ):
            hook(kind, error, trace)

    before = signal.signal(signal.SIGINT, interrupt)
    hook, sys.excepthook = sys.excepthook, excepthook
    try:
        with signals.request.heard():
            yield session
    except (Exception, KeyboardInterrupt, Stopped) as error:
        code = _end(error, session, debug)
        if code is None:
            raise
    else:
        return
    finally:
        signal.signal(signal.SIGINT, before)
        sys.excepthook = hook
    # The other processes may be waiting in a collective call: no goodbyes.
    sys.stdout.flush()
    sys.stderr.flush()
    leave(code)


def _end(error: BaseException, session: Session, debug: bool) -> int | None:
    """Say how a tool ends, where it is this process's to say.

    Returns:
        int, optional: The exit code; None for an error that keeps its traceback.
    """
    runner, request = session.runner, signals.request
    # What fails on the way out (workers or other processes have gone first) is no error.
    if session.interrupted or isinstance(error, KeyboardInterrupt):
        message, code = f'\ninterrupted{_resume_hint(runner)}', INTERRUPTED
    elif request.signum is not None:
        message, code = f'stopped by {request.name}{_resume_hint(runner)}', STOPPED
    elif isinstance(error, Stopped):  # by a signal to another process
        message, code = f'stopped{_resume_hint(runner)}', STOPPED
    elif not debug and processes.is_lost(error):
        code = processes.announced() or LOST
        if os.environ['LOCAL_RANK'] == '0' and code == LOST:
            print(f'error: another process is lost: {describe(error)}', file=sys.stderr)
        return code
    elif debug or not _is_users(error, runner):
        return _report_fault(runner) if 'MMATTN_ATTEMPT' in os.environ else None
    else:
        hint = '' if isinstance(error, UserError) else ' (--debug shows the traceback)'
        message, code = f'error: {describe(error)}{hint}', USER_ERROR
    alone = isinstance(error, UserError) and _begun(runner) and not error.everywhere
    if alone or rank() == 0:
        print(message, file=sys.stderr)
    processes.announce(code)
    return code


def _begun(runner: 'Runner | None') -> bool:
    return runner is not None and runner.progress.begun


def _is_users(error: BaseException, runner: 'Runner | None') -> bool:
    """Whether the user can mend an error, to whom a traceback says nothing."""
    mendable = isinstance(error, (UserError, FileNotFoundError)) or saving.is_full(error)
    return mendable or not _begun(runner)


def _report_fault(runner: 'Runner | None') -> int:
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


def _resume_hint(runner: 'Runner | None') -> str:
    if runner is None or runner.train_dataloader is None:
        return ''
    last = saving.pointed(runner.work_dir)
    if last is None:
        return '; there is no checkpoint yet'
    return f'; --resume goes on from {last}'
