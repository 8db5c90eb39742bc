"""What each module of a model gives: learnt from a run of a copy that holds no numbers."""

import copy
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .layouts import Path, is_pair, leaves

BATCH = 2
# Height and width differ, and both differ between the two: channels are what stays the same.
SIZES = ((256, 320), (320, 448))
# Of models that take images of one size, where they do not say which.
SQUARES = (224, 256, 384, 512, 448, 299, 32)


@dataclass
class Call:
    """One call of a module: tensors and pairs in its output and arguments, and what ran before."""

    output: dict[Path, Any]
    args: dict[Path, Any]
    kwargs: dict[Path, Any]
    # The convolutions' outputs so far: name, (H, W).
    convs: list[tuple[str, tuple[int, int]]]


Calls = dict[str, list[Call]]


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes and no numbers, and take no memory."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        made = torch.empty_like(tensor, device='meta')
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = made
    return copy.deepcopy(model, memo)


@contextmanager
def _generator_kept() -> Iterator[None]:
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def record(model: nn.Module, scope: str, inputs: Any) -> tuple[Calls, Exception | None]:
    """Run a module of a meta copy and note every call of every module in it.

    Args:
        model (nn.Module): The copy.
        scope (str): Which module is run; '' is all of it.
        inputs: A tensor, a tuple of arguments or a dict of keywords.

    Returns:
        tuple: the calls by the modules' names, and what stopped the run, if anything did.
    """
    calls: Calls = {}
    convs: list[tuple[str, tuple[int, int]]] = []
    handles = []
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = Call(leaves(output), leaves(args), leaves(kwargs), convs[:])
        for name in names[module]:
            calls.setdefault(name, []).append(call)
        if isinstance(module, nn.Conv2d) and isinstance(output, Tensor):
            convs.append((names[module][0], (output.shape[-2], output.shape[-1])))

    for module in names:
        handles.append(module.register_forward_hook(note, with_kwargs=True))
    error = None
    try:
        with torch.no_grad(), _generator_kept():
            run = model.get_submodule(scope)
            if isinstance(inputs, dict):
                run(**inputs)
            else:
                run(*(inputs if isinstance(inputs, tuple) else (inputs, *_unused(run))))
    except Exception as found:  # whatever a host says to what has no numbers
        error = found
    finally:
        for handle in handles:
            handle.remove()
    return calls, error


def _unused(module: nn.Module) -> tuple[None, ...]:
    """None for the `data_samples` that mmpose's models must be given and pass on unread."""
    try:
        parameters = [*inspect.signature(module.forward).parameters.values()][1:2]
    except (TypeError, ValueError):  # what is written in C
        return ()
    return tuple(None for p in parameters if p.name == 'data_samples' and p.default is p.empty)


def _image(model: nn.Module, size: tuple[int, int]) -> Tensor:
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    channels = convs[0].in_channels if convs and convs[0].in_channels in (1, 2, 3, 4) else 3
    dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
    dtype = dtypes[0] if dtypes else None
    return torch.empty(BATCH, channels, *size, device='meta', dtype=dtype)


def _declared_sizes(model: nn.Module) -> Iterator[tuple[int, int]]:
    """The size of images that a model says it takes, as timm's and torchvision's do."""
    for module in model.modules():
        cfg = getattr(module, 'pretrained_cfg', None) or getattr(module, 'default_cfg', None)
        found = [cfg.get('input_size') if isinstance(cfg, dict) else None]
        found += [getattr(module, key, None) for key in ('img_size', 'image_size', 'input_size')]
        for size in found:
            if isinstance(size, int) and not isinstance(size, bool):
                yield size, size
            elif isinstance(size, (tuple, list)) and len(size) in (2, 3):
                yield int(size[-2]), int(size[-1])


def _as_meta(inputs: Any, larger: bool = False) -> Any:
    """An example without numbers; or one of larger images, by which space is told from channels."""
    if isinstance(inputs, Tensor):
        shape = [*inputs.shape]
        if larger and len(shape) == 4:
            shape[2:] = 2 * shape[2], 3 * shape[3]
        return torch.empty(shape, dtype=inputs.dtype, device='meta')
    if isinstance(inputs, dict):
        return {key: _as_meta(value, larger) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(_as_meta(value, larger) for value in inputs)
    return inputs


def _scopes(names: Iterable[str]) -> list[str]:
    """The model, and if that cannot be run what leads to the names, from the outside in."""
    found = ['']
    for name in names:
        parts = name.split('.')
        found += ['.'.join(parts[:i]) for i in range(1, len(parts))]
    return sorted(set(found), key=lambda scope: (scope.count('.') + bool(scope), scope))


@dataclass
class DryRuns:
    """The calls in one run or two, of images of different sizes, and what ended them early."""

    calls: list[Calls]
    error: str = ''
    batch: int = BATCH


def dry_runs(
    model: nn.Module,
    names: list[str],
    example: Any = None,
    input_size: tuple[int, int] | None = None,
) -> DryRuns:
    """The calls of modules for two sizes of images, or for one where there is only one.

    Where the model cannot be run (it reads numbers to go on), the part that has the modules is.

    Args:
        model (nn.Module): Its weights are not touched.
        names (list[str]): The modules that matter; all of them are returned.
        example: What the model is called with: a tensor, a tuple of arguments, a dict of keywords.
        input_size (tuple[int, int], optional): H and W of the images that the model takes.

    Raises:
        ValueError: for another `input_size`.
    """
    if input_size is not None and not is_pair(input_size):
        raise ValueError(f'input_size must be (H, W) of images, got {input_size!r}')
    try:
        made = meta_copy(model)
        made.train(False)
    except Exception as found:
        return DryRuns([{}], f'the model cannot be copied ({_short(found)})')
    if example is not None:
        seen, error = record(made, '', _as_meta(example))
        larger, failed = record(made, '', _as_meta(example, larger=True))
        tensors = [t for t in leaves(example).values() if isinstance(t, Tensor) and t.dim()]
        batch = tensors[0].shape[0] if tensors else BATCH
        return DryRuns([seen] if failed or error else [seen, larger], _ended(error), batch)
    best = DryRuns([{}])
    for scope in _scopes(names):
        for sizes in _sizes(made, input_size):
            runs = [record(made, scope, _image(made, size)) for size in sizes]
            calls, errors = [run[0] for run in runs], [run[1] for run in runs if run[1]]
            complete = all(name in found for name in names for found in calls)
            if complete or (not errors and not scope):
                return DryRuns(calls)
            best.error = best.error or _ended(errors[0] if errors else None)
            if sum(n in calls[-1] for n in names) > sum(n in best.calls[-1] for n in names):
                best.calls = calls
    return best


def _sizes(model: nn.Module, said: tuple[int, int] | None) -> Iterator[tuple[tuple[int, int], ...]]:
    if said is not None:
        yield ((said[0], said[1]),)
        return
    yield SIZES
    fixed = [*_declared_sizes(model), *((size, size) for size in SQUARES)]
    for size in dict.fromkeys(fixed):
        yield (size,)


def _ended(error: Exception | None) -> str:
    return '' if error is None else f'the dry run ended in {_short(error)}'


def _short(error: Exception) -> str:
    text = ' '.join(str(error).split())
    return f'{type(error).__name__}: {text[:200]}'
