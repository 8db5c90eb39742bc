"""A loss of NaN or infinity stops the training before it reaches the weights, and says where.

All processes look at the loss together before the backward pass, which would carry it to all.
"""

import math

import torch
from mmengine.dist import all_gather_object, all_reduce, is_distributed
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from .errors import UserError
from .seeding import seed_iteration

FILES = 4  # named in the message; the log has all


class NonFiniteLossHook(Hook):
    """Refuses a loss that is not finite.

    Args:
        skip (int): How many batches may be left out for it before the training stops.
    """

    def __init__(self, skip=0):
        self.skip, self.skipped, self.batch, self.buffers = skip, 0, None, {}

    def before_train(self, runner):
        wrapper = runner.optim_wrapper
        update = getattr(wrapper, 'update_params', None)
        if update is None:
            return

        def guarded(loss, *args, **options):
            if _all_finite(loss):
                return update(loss, *args, **options)
            return self._refuse(runner, loss)

        wrapper.update_params = guarded

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.batch = data_batch
        if self.skip:
            # The forward pass will have put what is not finite into running means.
            self.buffers = {
                name: buffer.clone() for name, buffer in _bare(runner.model).named_buffers()
            }

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.batch = None

    def _refuse(self, runner, loss):
        here = None if _is_finite(loss) else (float(loss.detach()), first_layer(runner, self.batch))
        files = None if here is None else batch_files(self.batch)
        if here is None and is_distributed():
            first_layer(runner, self.batch)  # its synchronised layers wait for ours
        found = [each for each in _gather((here, files)) if each[0] is not None]
        (value, layer), files = found[0][0], [name for _, names in found for name in names]
        rates = sorted({rate for rates in _rates(runner) for rate in rates})
        message = (
            f'loss is {value} at iteration {runner.iter + 1} '
            f'(learning rate {", ".join(f"{rate:.4g}" for rate in rates)}); '
            f'not finite first: {layer}; images: '
        )
        runner.logger.error(message + ', '.join(files))
        for name, buffer in _bare(runner.model).named_buffers():
            if name in self.buffers:
                buffer.copy_(self.buffers[name])
        self.skipped += 1
        if self.skipped <= self.skip:
            runner.logger.warning(f'left out, {self.skipped} of {self.skip} (--skip-nonfinite)')
            return
        more = f' and {len(files) - FILES} more, see the log' if len(files) > FILES else ''
        hint = '--skip-nonfinite N leaves out up to N such batches'
        if self.skip:
            hint = f'{self.skip} such batches were left out before (--skip-nonfinite)'
        raise UserError(f'{message}{", ".join(files[:FILES])}{more}; {hint}', everywhere=True)


def _is_finite(loss):
    return bool(torch.isfinite(loss.detach()).all())


def _all_finite(loss):
    """Whether the loss is finite in all processes."""
    if not is_distributed():
        return _is_finite(loss)
    finite = torch.isfinite(loss.detach()).all().int()
    all_reduce(finite, 'min')
    return bool(finite)


def _gather(value):
    return all_gather_object(value) if is_distributed() else [value]


def _bare(model):
    return model.module if is_model_wrapper(model) else model


def _rates(runner):
    rates = runner.optim_wrapper.get_lr()
    return rates.values() if isinstance(rates, dict) else [rates]


def batch_files(batch):
    """The images of a batch as a data loader gives it, by path as far as they have one."""
    samples = batch.get('data_samples', ()) if isinstance(batch, dict) else ()
    names = []
    for sample in samples:
        number = getattr(sample, 'sample_idx', '?')
        names.append(str(getattr(sample, 'img_path', None) or f'sample {number}'))
    return names or ['unknown']


def first_layer(runner, batch):
    """Where the forward pass of a training step stops being finite, in words.

    The step is done again, with the same random numbers.
    """
    model, found, handles = _bare(runner.model), [], []

    def watch(name):
        def hook(module, inputs, output):
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


def _tensors(value):
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
