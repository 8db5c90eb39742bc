"""Triton kernels that are trusted only after they gave what the equations give, here.

The first call of an operator on a model of GPU, in a dtype, is preceded by a check: a process of
its own calls the operator and its equations (in float64, on the CPU) on a few small maps of both
memory formats and compares values and gradients. Being another process, it may crash, hang, run out
of memory or break its CUDA context without harm to this one; it draws none of its random numbers,
and is outside any capture or compilation that this one is in.

An operator that fails is replaced by its equations, with one warning. The verdict is kept, by
device, driver, versions and source, in `$XDG_CACHE_HOME/mmattn/checks` (`~/.cache`), where the
ranks of a machine share it: one checks, the others wait. `MMATTN_SELFCHECK=0` trusts the kernels.
"""

import contextlib
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows: processes may check the same at once
    fcntl = None  # type: ignore[assignment]

# Whole networks run in (8, 256, 56, 56) and the like: these reach the same loops and splits.
SHAPES = ((4, 64, 28, 28), (8, 256, 7, 7), (2, 24, 75, 41))
SECONDS = 300  # after which a check hangs
UNREACHABLE = 3  # the exit code of a check that did not come to its kernels
CHECKED = {'cuda'}  # device types; a CPU interprets the kernels for tests alone
REPORT = "what `python -m mmattn.doctor` prints, in an issue of the project's repository"
PACKAGE = Path(__file__).parents[2]

_verdicts: dict[tuple[str, torch.device, torch.dtype], str | None] = {}


# ------------------------------------------------------------------------------- the verdict


def passes(op: str, x: Tensor) -> bool:
    """Whether an operator's kernels may run on the device and in the dtype of x."""
    if x.device.type not in CHECKED:
        return True
    key = op, x.device, x.dtype
    if key not in _verdicts and os.environ.get('MMATTN_SELFCHECK') == '0':
        return True
    return problem_of(*key) is None


def problem_of(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """What is wrong with an operator's kernels, None for nothing; checks, and warns, once."""
    key = op, device, dtype
    if key not in _verdicts:
        problem = _shared(op, device, dtype)
        _verdicts[key] = problem
        if problem is not None:
            warnings.warn(
                f'mmattn runs the equations of {op!r} in {_short(dtype)} on {device}, several '
                f'times slower: its Triton kernels failed their self-check ({problem}). Please '
                f'report {REPORT}; MMATTN_IMPL=reference ends this warning.',
                stacklevel=2,
            )
    return _verdicts[key]


def _short(dtype):
    return str(dtype).removeprefix('torch.')


def _shared(op, device, dtype):
    """The verdict on disk, or that of a check, which one process of a machine makes."""
    about = dict(op=op, dtype=_short(dtype), **describe(device))
    path = folder() / f'{op}-{_digest(json.dumps(about, sort_keys=True).encode())}.json'
    with _locked(path.with_suffix('.lock')):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return json.loads(path.read_text())['problem']
        problem, final = run_check(op, device, dtype)
        if final:
            _write(path, dict(about, problem=problem))
    return problem


def _digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


def folder() -> Path:
    """Where verdicts are kept."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmattn' / 'checks'


def verdicts() -> list[dict[str, str | None]]:
    """All that are kept, of whatever device: op, dtype, device, driver, triton, torch, problem."""
    found = []
    for path in sorted(folder().glob('*.json')):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(path.read_text()))
    return found


def describe(device: torch.device) -> dict[str, str]:
    """What a verdict depends on. Two GPUs of a model share theirs."""
    from triton import __version__

    properties = torch.cuda.get_device_properties(device)
    return dict(
        device=f'{properties.name}, sm_{properties.major}{properties.minor}',
        driver=_driver(),
        triton=__version__,
        torch=torch.__version__,
        source=source(),
    )


def _driver():
    try:
        return Path('/proc/driver/nvidia/version').read_text().splitlines()[0].strip()
    except (OSError, IndexError):
        return f'for CUDA {torch.version.cuda}'


@functools.cache
def source() -> str:
    """The operators' own source, in short."""
    paths = sorted((PACKAGE / 'ops').rglob('*.py'))
    return _digest(b'\0'.join(path.read_bytes() for path in paths))


@contextlib.contextmanager
def _locked(path) -> Iterator[None]:
    """Held by one process at a time; where nothing can be written, by anyone."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(path.open('w'))
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(path, verdict):
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(dir=path.parent)
        with open(handle, 'w') as file:
            json.dump(verdict, file, indent=1)
        os.replace(name, path)


# --------------------------------------------------------------------- the process of a check


def command(op: str, device: torch.device, dtype: torch.dtype) -> list[str]:
    return [sys.executable, '-m', __name__, op, str(device), _short(dtype)]


def run_check(op: str, device: torch.device, dtype: torch.dtype) -> tuple[str | None, bool]:
    """What is wrong, and whether that is so for good, as a device without room is not."""
    # MMATTN_READ_ONLY: operators alone, without the codebases that take seconds to import.
    env = dict(os.environ, MMATTN_SELFCHECK='0', MMATTN_IMPL='fast', MMATTN_READ_ONLY='1')
    env['PYTHONPATH'] = os.pathsep.join([str(PACKAGE.parent), *filter(None, sys.path)])
    try:
        done = subprocess.run(
            command(op, device, dtype),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=env,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f'it was not over after {SECONDS} s', True
    except OSError as error:
        return f'it could not be started: {error}', False
    last = (done.stdout.strip().splitlines() or [''])[-1]
    if done.returncode == 0:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return json.loads(last)['problem'], True
    why = (done.stderr.strip().splitlines() or ['no message'])[-1][:300]
    if done.returncode == UNREACHABLE:
        return f'it did not come to the kernels: {why}', False
    return f'it ended with code {done.returncode}: {why}', True


def main(op: str, device: str, dtype: str) -> None:
    """In the process of a check: print what is wrong as JSON."""
    try:
        if device == 'cpu':  # interpreted
            from .. import dispatch

            dispatch._BACKENDS['cpu'] = 'mmattn.ops.triton'
        torch.zeros(1, device=device)
    except Exception as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        sys.exit(UNREACHABLE)
    shapes = INTERPRETED if device == 'cpu' else SHAPES
    print(json.dumps(dict(problem=examine(op, device, getattr(torch, dtype), shapes))))


# --------------------------------------------------------------------------- the comparison

# Small enough for the interpreter.
INTERPRETED = ((2, 5, 6, 7), (1, 9, 3, 4), (3, 4, 5, 2))


def examine(
    op: str, device: str | torch.device, dtype: torch.dtype, shapes: Sequence = SHAPES
) -> str | None:
    """Compare an operator with its equations; what is wrong in one line, or None."""
    for shape in shapes:
        for last in (False, True):
            try:
                problem = compare(op, device, dtype, shape, last)
            except Exception as error:
                problem = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
            if problem is not None:
                return f'{problem}, {shape}, {"channels_last" if last else "contiguous"}'
    return None


def compare(
    op: str, device: str | torch.device, dtype: torch.dtype, shape: Sequence[int], last: bool
) -> str | None:
    """Of one shape and memory format. Raises what the kernels raise."""
    from .. import examples
    from ..library import decompositions

    function = getattr(torch.ops.mmattn, op).default
    ours = examples.arguments(op, shape, dtype, last, device)
    written = decompositions[function]
    exact = _map(ours, _exact)
    results = [_results(function, *pair) for pair in ((function, ours), (written, exact))]
    for name, value in results[1].items():
        mine = results[0][name]
        if value.requires_grad and not mine.requires_grad:
            return f'{name} has no gradient'
        # What is kept for backward alone, equations leave out: it has no gradient.
        if value.requires_grad or name == 'moments':
            problem = _difference(name, mine, value, dtype)
            if problem is not None:
                return problem
    names = [name for name, value in results[1].items() if value.requires_grad]
    grads = [
        _gradients([found[name] for name in names], args, dtype)
        for found, args in zip(results, (ours, exact), strict=True)
    ]
    # Some are zero but for rounding, as of a bias before a batch norm: small beside the others.
    floor = 1e-2 * max(float(value.abs().max()) for value in grads[1])
    for i, (mine, value) in enumerate(zip(*grads, strict=True)):
        problem = _difference(f'gradient {i}', mine, value, dtype, slack=20, floor=floor)
        if problem is not None:
            return problem
    return None


def _exact(t):
    if not t.is_floating_point():
        return t.detach().cpu()
    return t.detach().cpu().double().requires_grad_(t.requires_grad)


def _map(args, change):
    if isinstance(args, Tensor):
        return change(args)
    if isinstance(args, (tuple, list)):
        return type(args)(_map(a, change) for a in args)
    return args


def _results(function, call, args):
    """By name; lists are what is kept for backward."""
    found = call(*args)
    found = (found,) if isinstance(found, Tensor) else found
    names = [r.name or f'result {i}' for i, r in enumerate(function._schema.returns)]
    return {name: t for name, t in zip(names, found, strict=True) if isinstance(t, Tensor)}


def _gradients(results, args, dtype):
    """Of the sum of all results, each element weighted as its place says."""
    leaves = [t for t in _flat(args) if t.requires_grad]
    weights = [
        torch.linspace(-1, 1.5, t.numel(), dtype=torch.float64).view(t.shape) for t in results
    ]
    # Rounded as the map is, so that both see the same.
    weights = [
        (w.to(dtype) if t.dim() == 4 else w.float()).to(t.device, t.dtype)
        for w, t in zip(weights, results, strict=True)
    ]
    return torch.autograd.grad(results, leaves, weights)


def _flat(args):
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (tuple, list)):
            yield from _flat(arg)


def _difference(name, got, exact, dtype, slack=1.0, floor=1e-6):
    """What differs by more than rounding does, relative to the largest value; None for nothing."""
    if got.shape != exact.shape:
        return f'{name} is of shape {tuple(got.shape)} in place of {tuple(exact.shape)}'
    bound = slack * 5e-5
    if got.dtype == dtype:
        bound = max(bound, 2 * torch.finfo(dtype).eps)
    got, exact = got.detach().cpu().double(), exact.detach()
    error = float((got - exact).abs().max() / exact.abs().max().clamp_min(floor))
    return None if error <= bound else f'{name} is off by {error:.2g} of its largest value'


if __name__ == '__main__':
    main(*sys.argv[1:])
