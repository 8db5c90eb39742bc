"""The operators of PyTorch's library `mmattn`, and what PyTorch knows of each.

An operator is declared once, by `define`: its schema, a kernel for every device that has a backend,
shapes for tracing (fake), its gradient, and the same as equations.

How they are registered, and why so
-----------------------------------
An operator is functional: it writes to none of its arguments, and returns none of them. A batch
norm's new statistics are results, which the caller moves the running ones towards with operators
of PyTorch. So nothing has to be wrapped for functionalisation, and an exported operator can be
decomposed (`decompositions`).

- CPU and CUDA keys: the kernel, on the backend of that device (`mmattn.ops.dispatch.backend`).
- Autograd key: a `torch.autograd.Function` whose backward is an operator, too. `torch.compile` and
  `torch.export` see two operators and run what eager mode runs, in any shape. (PyTorch's
  `register_autograd` does nearly this; it refuses a gradient that must not be differentiated
  again, and takes 12 us more a call.)
- FuncTorchDynamicLayerFrontMode, the key that is set while `torch.func` transforms anything: the
  equations, which it can see into. So grad, vjp, jvp, vmap and what is made of them are exact,
  compiled as well. A tangent of `torch.autograd.forward_ad` gets the equations at the Autograd key.
- A backward is differentiated exactly where it is linear; else who does so gets an error that names
  `impl='reference'`. So does a batch of gradients.

An `autograd.Function` around a bare operator (its other name is C in this project's notes) would
leave the operator in an exported graph without a gradient, and has to be traced by dynamo, whose
support of Functions differs from version to version. Nothing here needs PyTorch newer than 2.5.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import dispatch

# A package that is imported afresh, as notebooks do, takes the place of its former self.
_FORMER = '_mmattn_library'
if (_former := getattr(torch.ops, '__dict__', {}).get(_FORMER)) is not None:
    _former._destroy()
LIBRARY = torch.library.Library('mmattn', 'DEF')
torch.ops.__dict__[_FORMER] = LIBRARY
# A compiler may give the kernels no other memory format than tracing has seen.
_TAGS = (torch.Tag.needs_fixed_stride_order,)
_TRANSFORMED = 'FuncTorchDynamicLayerFrontMode'
_PLAIN_OR_NONE = dispatch.PLAIN | {type(None)}
_BATCHED_GRADIENTS = 'Batched'  # of torch.autograd.grad(is_grads_batched=True)

TWICE = (
    "trying to differentiate twice: the fast ops have a first derivative only; impl='reference' "
    'and MMATTN_IMPL=reference have all'
)
BATCHED = (
    'the fast ops take no batch of gradients (is_grads_batched=True, vectorize=True): '
    "impl='reference' and MMATTN_IMPL=reference do"
)

# Every forward operator with its equations, for `ExportedProgram.run_decompositions`.
decompositions: dict[Any, Callable] = {}
# Every operator's kernel by its name, to be called with a backend.
kernels: dict[str, Callable] = {}
# Which of its arguments are maps, by their numbers.
_maps: dict[str, frozenset[int]] = {}


class Gradient(NamedTuple):
    """How an operator is differentiated.

    keep(ctx, args, outputs): the tensors that backward needs; `ctx` takes what is no tensor.
    backward(ctx, saved, *grads): the gradients of the tensors among the arguments, in their order,
        the tensors of a list one by one. `ctx.needs` says of each whether it is asked for.
    outputs: how many outputs, from the first on, have a gradient.
    """

    keep: Callable[..., Sequence[Tensor | None]]
    backward: Callable[..., Sequence[Tensor | None]]
    outputs: int = 1


def define(
    schema: str,
    kernel: Callable,
    fake: Callable,
    equations: Callable | None = None,
    gradient: Gradient | None = None,
    part: Callable[..., bool] | None = None,
    kernels_on: Callable[[torch.device], bool] | None = None,
) -> None:
    """Make `torch.ops.mmattn.<name>`.

    Args:
        schema: its name, arguments and results, as `torch.library` takes them.
        kernel: called with a backend and the arguments. The maps `x` and `dy` may have any
            strides; all other tensors come contiguous.
        fake: called with the arguments, gives tensors like the results.
        equations: called with the arguments, gives the results in operators of PyTorch. Results
            without a gradient may be left out. A backward has none.
        gradient: None for a backward.
        part: called with the arguments, whether they ask for the identity in part
            (`mmattn.ops.identity`), of which a backend need not know. None of an operator that
            has no such argument.
        kernels_on: whether there is a kernel on a device, of an operator that not every backend
            has; elsewhere its equations run. None: on every device that has a backend.
    """
    name = schema.partition('(')[0]
    LIBRARY.define(schema, tags=_TAGS)
    op = getattr(torch.ops.mmattn, name).default

    kernels[name] = kernel
    _maps[name] = frozenset(i for i, a in enumerate(op._schema.arguments) if a.name in ('x', 'dy'))
    several = len(op._schema.returns) > 1
    written: Any = None if gradient is None else _padded(op, equations, fake)

    def why_not(x, args):
        """Why kernels do not run, or nothing."""
        if kernels_on is not None and not kernels_on(x.device):
            return f'has no kernel on {x.device}'
        if not _knows(name, part, x, args):
            return 'has no kernel with identity_scale'
        return '' if dispatch.passes(name, x) else 'failed its self-check on this GPU'

    def run(*args):
        x = next(_tensors(args))
        if 0 < x.numel() < 2**31:
            backend = _backend(name, x.device)
            why = why_not(x, args) if gradient is not None else ''
            found = _instead(name, written, args, why) if why else call_kernel(backend, name, args)
        elif not x.numel():  # of an empty map, which compiled code may come to
            found = _zeros(fake(*args)) if gradient is None else written(*args)
        else:
            raise RuntimeError(f"mmattn::{name} takes less than 2**31 elements; impl='reference'")
        return tuple(found) if several else found

    torch.library.register_fake(f'mmattn::{name}', fake, lib=LIBRARY)
    for key in ('CPU', 'CUDA'):
        LIBRARY.impl(name, run, key)
    if gradient is None:
        LIBRARY.impl(name, _once(op), 'Autograd')
        for key in (_TRANSFORMED, _BATCHED_GRADIENTS):
            LIBRARY.impl(name, _refuse_batch, key)
    else:
        decompositions[op] = written
        LIBRARY.impl(name, _differentiable(name, op, run, written, gradient, why_not), 'Autograd')
        for key in (_TRANSFORMED, _BATCHED_GRADIENTS):
            LIBRARY.impl(name, written, key)


def call_kernel(backend: ModuleType, name: str, args: Sequence) -> Any:
    """An operator by a backend: its own whole one, or the kernel that is made of its functions."""
    # A compiler may restride what is kept for backward: Inductor makes all that is 4-D
    # channels_last behind a convolution.
    maps = _maps[name]
    args = [arg if i in maps else _contiguous(arg) for i, arg in enumerate(args)]
    whole = getattr(backend, 'operator', None)
    own = None if whole is None else whole(name)
    found = NotImplemented if own is None else own(*args)
    return kernels[name](backend, *args) if found is NotImplemented else found


def _contiguous(arg):
    if isinstance(arg, (list, tuple)):
        return [t.contiguous() if isinstance(t, Tensor) else t for t in arg]
    return arg.contiguous() if isinstance(arg, Tensor) else arg


def _knows(name, part, x, args):
    """Whether the kernels of x's device have what is asked for. (Without kernels that is an error
    of its own.)"""
    if part is None or not part(*args):
        return True
    kernels = dispatch.backend(x.device.type)
    return kernels is None or name in kernels.IDENTITY


def _instead(name, written, args, why):
    """The equations' results of an operator whose kernels do not run. What is kept for backward is
    not among them: autograd differentiates the equations, in place of the operator."""
    if not torch.is_inference_mode_enabled():
        raise RuntimeError(
            f'mmattn::{name} {why}, and this program was compiled or exported with it: compile it '
            'anew, or decompose it (mmattn.ops.decompositions)'
        )
    return written(*args)


def _zeros(found):
    if isinstance(found, Tensor):
        return torch.zeros_like(found)
    return [_zeros(t) for t in found]


def _backend(name, device):
    kernels = dispatch.backend(device.type)
    if kernels is None or not kernels.works(device):
        raise RuntimeError(
            f'mmattn::{name} has no kernel on {device}: it needs a C++ compiler on a CPU, Triton '
            "on a GPU; impl='reference' needs neither"
        )
    return kernels


def _tensors(args):
    """The tensors among arguments, those of a list one by one; None is left out."""
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from (t for t in arg if isinstance(t, Tensor))


def _padded(op, equations, fake):
    """The equations with all results of the operator, and in full precision."""
    count = len(op._schema.returns)

    def written(*args):
        device = next(_tensors(args)).device.type
        with dispatch.full_precision(device):
            found = equations(*args)
        if count == 1:
            return found
        found = tuple(found) if isinstance(found, (tuple, list)) else (found,)
        if len(found) < count:
            with torch.no_grad():
                found += tuple(map(_zeros, fake(*args)[len(found) :]))
        return found

    return written


def _has_tangent(args):
    return dispatch.forward_level() >= 0 and any(
        forward_ad.unpack_dual(t).tangent is not None for t in _tensors(args)
    )


def _below(op, args):
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _differentiable(name, op, run, equations, gradient, why_not):
    kinds = [str(argument.type) for argument in op._schema.arguments]
    # None: no tensor; else whether it is a list of tensors.
    lists = [('List' in kind) if 'Tensor' in kind else None for kind in kinds]

    # A node of its own name in the graph.
    function = type(_Function)(name, (_Function,), {})

    def call(*args):
        flat = []
        for arg, is_list in zip(args, lists, strict=True):
            if is_list:
                flat += arg
            elif is_list is not None:
                flat.append(arg)
        device = next(t for t in flat if t is not None).device
        for t in flat:
            if t is not None and t.device != device:
                raise dispatch.two_devices(device, t.device)
        if _has_tangent(args) or why_not(next(_tensors(args)), args):
            return equations(*args)
        below = run if _is_eager(flat) else op
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in flat):
            lengths = []
            return _nested(function.apply(below, gradient, lists, args, lengths, *flat), lengths)
        return _below(below, args)

    return call


def _is_eager(flat):
    """Whether nobody stands between an operator's Autograd key and its kernel: no mode, no class
    of tensor, no sign or zeros that are flags. Then the kernel is called as it is, a way through
    the dispatcher less."""
    return (
        not torch._C._len_torch_dispatch_stack()
        and _PLAIN_OR_NONE.issuperset(map(type, flat))
        and flat[0].device.type in ('cpu', 'cuda')
        and not any(t is not None and (t.is_neg() or t._is_zerotensor()) for t in flat)
    )


def _nested(outputs, lengths):
    """Results as the schema has them: -1 stands for a tensor, else for a list of so many."""
    if lengths == [-1]:
        return outputs[0]
    left, found = iter(outputs), []
    for length in lengths:
        found.append(next(left) if length < 0 else [next(left) for _ in range(length)])
    return tuple(found)


class _Function(torch.autograd.Function):
    """An operator with its backward. Functions know no lists: `lengths` is filled for `_nested`."""

    @staticmethod
    def forward(
        ctx: Any,
        below: Callable,
        gradient: Gradient,
        lists: list,
        args: tuple,
        lengths: list[int],
        *flat: Tensor | None,
    ) -> tuple[Tensor, ...]:
        flat_: Any = iter(flat)
        full: list[Any] = []
        for arg, is_list in zip(args, lists, strict=True):
            if is_list:
                full.append([next(flat_) for _ in arg])
            else:
                full.append(arg if is_list is None else next(flat_))
        outputs = _below(below, full)
        ctx.gradient, ctx.needs = gradient, ctx.needs_input_grad[5:]
        ctx.set_materialize_grads(False)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        ctx.save_for_backward(*gradient.keep(ctx, full, outputs))
        every = []
        for output in outputs:
            several = isinstance(output, list)
            lengths.append(len(output) if several else -1)
            every += output if several else [output]
        ctx.mark_non_differentiable(*every[gradient.outputs :])
        return tuple(every)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        # Of a result that was left out, a tensor (0,), there is no gradient.
        grads = [None if g is None or g.shape == (0,) else g for g in given[: ctx.gradient.outputs]]
        if all(g is None for g in grads):
            return (None,) * (5 + len(ctx.needs))
        # Unpacked once: checkpointing unpacks nothing twice.
        saved, differentiate = ctx.saved_tensors, ctx.gradient.backward
        if torch.is_grad_enabled() or dispatch.forward_level() >= 0:
            return *(None,) * 5, *differentiate(ctx, saved, *grads)
        with torch._C._AutoDispatchBelowAutograd():  # nobody differentiates the backward
            return *(None,) * 5, *differentiate(ctx, saved, *grads)


class _Refusal(torch.autograd.Function):
    """Tensors as they are, for a graph that ends here: who walks it gets an error."""

    @staticmethod
    def forward(ctx: Any, outputs: Sequence[Tensor], *causes: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.detach() for t in outputs)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(TWICE)


def _once(op):
    """A backward whose results raise an error when they are differentiated again."""

    def call(*args):
        if _has_tangent(args):
            raise RuntimeError(TWICE)
        outputs = _below(op, args)
        if not torch.is_grad_enabled():
            return outputs
        causes = [t for t in _tensors(args) if t.requires_grad]
        if not causes:
            return outputs
        if isinstance(outputs, Tensor):
            return _Refusal.apply((outputs,), *causes)[0]
        if isinstance(outputs, list):
            return list(_Refusal.apply(outputs, *causes))
        return _Refusal.apply(outputs, *causes)

    return call


def _refuse_batch(*args):
    raise RuntimeError(BATCHED)
