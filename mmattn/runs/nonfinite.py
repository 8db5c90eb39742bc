"""A loss or a gradient of NaN or infinity stops the training before it reaches the weights.

All processes look at the loss together before the backward pass, which would carry it to all, and
at the gradients before the optimizer's step: that of a square root at 0, say, under a finite loss.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import torch
from mmengine.dist import all_gather_object, all_reduce, is_distributed
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from .errors import UserError
from .hooks import Batch, Outputs
from .seeding import seed_iteration

T = TypeVar('T')

NAMED = 4  # images and parameters in the message; the log has all
SKIPPED = 'skipped_nonfinite'  # in the message hub, and so in checkpoints
# A loss is multiplied by a scale so that small gradients are no zeros in half precision, whose
# smallest number this is: a scaler that comes down to it has met infinities at every scale.
SMALLEST_SCALE = 2.0**-24


class NonFiniteHook(Hook):
    """Refuses a loss and gradients that are not finite.

    Gradients that a scaler for mixed precision has scaled are left to it: it skips those steps and
    lowers its scale. Once that helps no more (`SMALLEST_SCALE`), the training stops.

    Args:
        skip (int): How many batches may be left out for it before the training stops, restarts and
            resumptions included.
    """

    def __init__(self, skip: int = 0) -> None:
        self.skip, self.skipped = skip, 0
        self.batch: Batch = None
        self.buffers: dict[str, Tensor] = {}
        self.files: list[str] = []  # of all batches since the optimizer's last step
        self.loss: Tensor | None = None

    def before_train(self, runner: Runner) -> None:
        skipped = runner.message_hub.runtime_info.get(SKIPPED, 0)
        self.skipped = skipped if isinstance(skipped, int) else 0
        wrapper = runner.optim_wrapper
        for each in wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]:
            if hasattr(each, 'update_params'):
                self._guard(runner, each)

    def _guard(self, runner: Runner, wrapper: OptimWrapper) -> None:
        update, step = wrapper.update_params, wrapper.step

        def guarded_update(loss: Tensor, *args: Any, **options: Any) -> None:
            self.loss = loss.detach()
            if not _all_finite(self.loss):
                return self._refuse_loss(runner, self.loss)
            self.files += batch_files(self.batch)
            return update(loss, *args, **options)

        @functools.wraps(step)  # by whose attributes mmengine's schedulers know it again
        def guarded_step(**options: Any) -> None:
            parameters = [each for group in wrapper.param_groups for each in group['params']]
            finite = _scales(wrapper) or _all_finite(_norms(parameters))
            if not (finite or _every_finite(parameters)):
                return self._refuse_gradients(runner)
            step(**options)
            if _scale(wrapper) <= SMALLEST_SCALE:
                self._refuse_scale(_scale(wrapper))
            self.files = []

        wrapper.update_params, wrapper.step = guarded_update, guarded_step

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        self.batch = data_batch
        if self.skip:
            # The forward pass will have put what is not finite into running means.
            self.buffers = {
                name: buffer.clone() for name, buffer in _bare(runner.model).named_buffers()
            }

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Batch = None, outputs: Outputs = None
    ) -> None:
        self.batch = self.loss = None

    def _refuse_loss(self, runner: Runner, loss: Tensor) -> None:
        here = None
        if not _is_finite(loss):
            here = float(loss), first_layer(runner, self.batch), batch_files(self.batch)
        elif is_distributed():
            first_layer(runner, self.batch)  # its synchronised layers wait for ours
        found = [each for each in _gather(here) if each is not None]
        value, layer, _ = found[0]
        files = [name for *_, names in found for name in names]
        self._refuse(
            runner,
            f'loss is {value} at iteration {runner.iter + 1} ({_rates(runner)}); '
            f'not finite first: {layer}',
            files,
        )

    def _refuse_gradients(self, runner: Runner) -> None:
        # Summed over the processes by now: each has the same ones, and any may be the cause.
        found = _gather((bad_gradients(_bare(runner.model)), self.files or batch_files(self.batch)))
        self.files = []
        names, files = found[0][0], [name for _, some in found for name in some]
        loss = '' if self.loss is None else f'loss {float(self.loss):.4g}, '
        runner.logger.error(f'gradients that are not finite: {", ".join(names)}')
        self._refuse(
            runner,
            f'a gradient is not finite at iteration {runner.iter + 1} ({loss}{_rates(runner)}); '
            f'seen from the loss, first those of {_some(names)}',
            files,
        )

    def _refuse_scale(self, scale: float) -> NoReturn:
        raise UserError(
            f'gradients are not finite however little the loss is scaled ({scale:.3g} by now): '
            f'each step was skipped; images of the last: {_some(self.files)}',
            everywhere=True,
        )

    def _refuse(self, runner: Runner, message: str, files: Sequence[str]) -> None:
        message += '; images: '
        runner.logger.error(message + ', '.join(files))
        for name, buffer in _bare(runner.model).named_buffers():
            if name in self.buffers:
                buffer.copy_(self.buffers[name])
        self.skipped += 1
        if self.skipped <= self.skip:
            runner.message_hub.update_info(SKIPPED, self.skipped)
            runner.logger.warning(f'left out, {self.skipped} of {self.skip} (--skip-nonfinite)')
            return
        hint = '--skip-nonfinite N leaves out up to N such batches'
        if self.skipped > 1:
            hint = f'{self.skipped - 1} such batches were left out before (--skip-nonfinite)'
        raise UserError(f'{message}{_some(files)}; {hint}', everywhere=True)


def _some(names: Sequence[str]) -> str:
    """The first of many names, for a message."""
    more = f' and {len(names) - NAMED} more, see the log' if len(names) > NAMED else ''
    return ', '.join(names[:NAMED]) + more


def _scales(wrapper: OptimWrapper) -> bool:
    """Whether an optimizer's wrapper scales the loss, and sees to overflows itself."""
    return hasattr(wrapper, 'loss_scaler') or 'Apex' in type(wrapper).__name__


def _scale(wrapper: OptimWrapper) -> float:
    """The factor that an optimizer's wrapper multiplies the loss by; 1 if it has none."""
    scale = getattr(getattr(wrapper, 'loss_scaler', None), 'get_scale', None)
    return 1.0 if scale is None else scale()


def _gradients(parameters: Iterable[nn.Parameter]) -> Iterator[Tensor]:
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None:
            yield gradient.coalesce().values() if gradient.is_sparse else gradient


def _norms(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The L2 norms of all gradients: (number,). One pass, in few launches on a GPU."""
    gradients = [each.detach() for each in _gradients(parameters)]
    if not gradients:
        return torch.zeros(1)
    norms = torch._foreach_norm(gradients)  # of which torch.nn.utils.clip_grad_norm_ is made
    return torch.stack([norm.float().to(norms[0].device) for norm in norms])


def _every_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether it was only a norm that was too large for a number; the same in all processes."""
    finite = all([_is_finite(each) for each in _gradients(parameters)])
    return _all_finite(torch.tensor(0.0 if finite else math.nan))


def bad_gradients(model: nn.Module) -> list[str]:
    """The parameters whose gradients are not finite, from the end of a model to its beginning."""
    return [
        name
        for name, parameter in reversed([*model.named_parameters()])
        if not all(map(_is_finite, _gradients([parameter])))
    ]


def _is_finite(loss: Tensor) -> bool:
    return bool(torch.isfinite(loss.detach()).all())


def _all_finite(values: Tensor) -> bool:
    """Whether values are finite in all processes."""
    if not is_distributed():
        return _is_finite(values)
    finite = torch.isfinite(values.detach()).all().int()
    all_reduce(finite, 'min')
    return bool(finite)


def _gather(value: T) -> list[T]:
    return all_gather_object(value) if is_distributed() else [value]


def _bare(model: nn.Module) -> nn.Module:
    inner: Any = model.module if is_model_wrapper(model) else model
    return inner


def _rates(runner: Runner) -> str:
    """The learning rates, in words."""
    rates = runner.optim_wrapper.get_lr()
    rates = rates.values() if isinstance(rates, dict) else [rates]
    rates = sorted({rate for some in rates for rate in some})
    return f'learning rate {", ".join(f"{rate:.4g}" for rate in rates)}'


def batch_files(batch: Batch) -> list[str]:
    """The images of a batch as a data loader gives it, by path as far as they have one."""
    samples = batch.get('data_samples', ()) if isinstance(batch, dict) else ()
    names = []
    for sample in samples:
        number = getattr(sample, 'sample_idx', '?')
        names.append(str(getattr(sample, 'img_path', None) or f'sample {number}'))
    return names or ['unknown']


def first_layer(runner: Runner, batch: Batch) -> str:
    """Where the forward pass of a training step stops being finite, in words.

    The step is done again, with the same random numbers.
    """
    model: Any = _bare(runner.model)
    found, handles = [], []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all(map(_is_finite, _tensors(output))):
                weights = all(_is_finite(each) for each in module.parameters(recurse=False))
                found.append(name if weights else f'{name}, whose weights are not finite')

        return hook

    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_hook(watch(name)))
    try:
        seed_iteration(runner)
        with torch.no_grad(), runner.optim_wrapper.optim_context(model):
            losses = model._run_forward(model.data_preprocessor(batch, True), mode='loss')
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    names = [
        name
        for name, loss in losses.items()
        if not all(math.isfinite(each) for part in _tensors(loss) for each in part.flatten())
    ]
    return f'no layer, but {", ".join(names)}' if names else 'not seen again when repeated'


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a layer gives."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
