"""What the tests of the self-check do in a process that interprets the kernels."""

import contextlib
import warnings
from unittest import mock

import torch

from mmattn import ops
from mmattn.ops import examples
from mmattn.ops import triton as kernels
from mmattn.ops.triton import selfcheck

CPU, FLOAT = torch.device('cpu'), torch.float32


def examine(op, dtype=FLOAT, shapes=None):
    return selfcheck.examine(op, 'cpu', dtype, shapes or selfcheck.INTERPRETED)


@contextlib.contextmanager
def spoiled(name, change):
    """A function of the backend whose results are changed."""
    whole = getattr(kernels, name)

    def wrong(*args, **kwargs):
        return change(whole(*args, **kwargs))

    with mock.patch.object(kernels, name, wrong):
        yield


def wrong_value(y):
    y.view(-1)[-1] += 0.5
    return y


def wrong_gradient(found):
    dx, dc = found
    return dx, dc * 1.05


def does_not_compile(found):
    raise ValueError('unsupported\ntarget')


SPOILS = dict(
    value=('channel_scale', wrong_value),
    nan=('channel_scale', lambda y: y * float('nan')),
    gradient=('channel_scale_grad', wrong_gradient),
    compile=('channel_scale', does_not_compile),
)


def examine_spoiled(spoil):
    with spoiled(*SPOILS[spoil]):
        return examine('channel_scale', shapes=[(2, 3, 4, 5)])


def use_spoiled(spoil):
    """An operator that fails its check: how far off it is then, the warnings, how often it was
    checked, and what runs in the end."""
    asked = []

    def check_here(op, device, dtype):
        asked.append(op)
        return examine(op, dtype, [(2, 3, 4, 5)]), True

    made_up = mock.patch.object(selfcheck, 'describe', lambda device: dict(device='made up'))
    with contextlib.ExitStack() as stack:
        for patch in (
            made_up,
            mock.patch.object(selfcheck, 'CHECKED', {'cpu'}),
            mock.patch.object(selfcheck, 'run_check', check_here),
            mock.patch.dict(selfcheck._verdicts, clear=True),
        ):
            stack.enter_context(patch)
        if spoil:
            stack.enter_context(spoiled(*SPOILS[spoil]))
        said = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter('always')
        x, factors = examples.arguments('channel_scale', (2, 3, 4, 5), FLOAT, False)
        # In the check itself, operators run unchecked: it is another process.
        stack.enter_context(mock.patch.object(selfcheck, 'passes', _outside(selfcheck.passes)))
        off = 0.0
        for _ in range(2):
            y = ops.channel_scale(x, *factors)
            exact = ops.channel_scale(x, *factors, impl='reference')
            for a, b in zip(
                torch.autograd.grad(y.square().sum(), [x, *factors]),
                torch.autograd.grad(exact.square().sum(), [x, *factors]),
                strict=True,
            ):
                off = max(off, float((a - b).abs().max()))
            with torch.inference_mode():
                z = ops.channel_scale(torch.ones(2, 3, 4, 5), torch.full((2, 3), 0.5))
            off = max(off, float((y - exact).abs().max()), float((z - 0.5).abs().max()))
        runs = ops.backend_of(x, 'channel_scale')
        texts = [str(w.message) for w in said]
        return off, [text for text in texts if 'mmattn' in text], asked, runs


def _outside(passes):
    inside = []

    def passes_outside(op, x):
        if inside:
            return True
        inside.append(True)
        try:
            return passes(op, x)
        finally:
            inside.pop()

    return passes_outside


def a_stale_program():
    """The error of a forward that was compiled with an operator that has failed since."""
    with (
        mock.patch.object(selfcheck, 'CHECKED', {'cpu'}),
        mock.patch.dict(selfcheck._verdicts, {('channel_scale', CPU, FLOAT): 'it is off'}),
        torch._C._AutoDispatchBelowAutograd(),
    ):
        try:
            torch.ops.mmattn.channel_scale(torch.ones(1, 2, 3, 3), [torch.ones(1, 2)])
        except RuntimeError as error:
            return str(error)


def compile_failed():
    """How far off compiled code is, of an operator that has failed."""
    x, factors = examples.arguments('channel_scale', (2, 3, 4, 5), FLOAT, False)
    results = []
    with (
        mock.patch.object(selfcheck, 'CHECKED', {'cpu'}),
        mock.patch.dict(selfcheck._verdicts, {('channel_scale', CPU, FLOAT): 'it is off'}),
        spoiled(*SPOILS['value']),
    ):
        made = torch.compile(ops.channel_scale, backend='aot_eager', fullgraph=True)
        for y in (made(x, *factors), ops.channel_scale(x, *factors, impl='reference')):
            results.append([y, *torch.autograd.grad(y.square().sum(), [x, *factors])])
    return max(float((a - b).detach().abs().max()) for a, b in zip(*results, strict=True))
