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
  In eager mode both kernels are called as they are, without a second way through the dispatcher:
  where its keys say that the tensors are nothing but memory and no mode is on, nobody stands there.
- FuncTorchDynamicLayerFrontMode, the key that is set while `torch.func` transforms anything: the
  equations, which it can see into. So grad, vjp, jvp, vmap and what is made of them are exact,
  compiled as well. A tangent of `torch.autograd.forward_ad` gets the equations at the Autograd key.
- A backward is differentiated exactly where it is linear; else who does so gets an error that names
  `impl='reference'`. So does a batch of gradients.

An `autograd.Function` around a bare operator (its other name is C in this project's notes) would
leave the operator in an exported graph without a gradient, and has to be traced by dynamo, whose
support of Functions differs from version to version. Nothing here needs PyTorch newer than 2.5.
"""

import contextlib
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


def _keys(*names):
    """A set of dispatch keys as a number, compared in no time."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, names[0]))
    for name in names[1:]:
        keys = keys.add(getattr(torch._C.DispatchKey, name))
    return keys.raw_repr()


# What the dispatcher knows of a call at its Autograd key, and of a tensor, that is nothing but
# memory: no mode is on, and no sign, zeros or batch are flags.
_PLAIN_CALLS = frozenset(_keys(d, f'Autograd{d}') for d in ('CPU', 'CUDA'))
_PLAIN_TENSORS = frozenset(
    _keys(d, f'Autograd{d}', 'ADInplaceOrView', f'Autocast{d}') for d in ('CPU', 'CUDA')
)
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
# What calls a kernel with an operator's arguments alone, as the operator does.
_runs: dict[str, Callable] = {}
# Which of its arguments must be contiguous: their numbers, and whether they are lists of tensors.
_contiguous: dict[str, list[tuple[int, bool]]] = {}


class Gradient(NamedTuple):
    """How an operator is differentiated.

    keep(ctx, args, outputs): the tensors that backward needs; `ctx` takes what is no tensor.
    backward(ctx, saved, *grads): the gradients of the tensors among the arguments, in their order,
        the tensors of a list one by one. `ctx.needs` says of each whether it is asked for;
        `ctx.backward_op` is the operator `<name>_backward`, or its kernel where that is as good.
    outputs: how many outputs, from the first on, have a gradient. These are no lists.
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

    lists = _lists(op)
    kernels[name] = kernel
    _contiguous[name] = [
        (i, is_list)
        for i, (argument, is_list) in enumerate(zip(op._schema.arguments, lists, strict=True))
        if is_list is not None and argument.name not in ('x', 'dy')
    ]
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

    _runs[name] = run
    torch.library.register_fake(f'mmattn::{name}', fake, lib=LIBRARY)
    for key in ('CPU', 'CUDA'):
        LIBRARY.impl(name, run, key)
    if gradient is None:
        LIBRARY.impl(name, _once(op), 'Autograd')
        for key in (_TRANSFORMED, _BATCHED_GRADIENTS):
            LIBRARY.impl(name, _refuse_batch, key)
    else:
        decompositions[op] = written
        call = _differentiable(name, op, lists, run, written, gradient, why_not)
        LIBRARY.impl(name, call, 'Autograd', with_keyset=True)
        for key in (_TRANSFORMED, _BATCHED_GRADIENTS):
            LIBRARY.impl(name, written, key)


def call_kernel(backend: ModuleType, name: str, args: Sequence) -> Any:
    """An operator by a backend: its own whole one, or the kernel that is made of its functions."""
    # A compiler may restride what is kept for backward: Inductor makes all that is 4-D
    # channels_last behind a convolution.
    args = [*args]
    for i, is_list in _contiguous[name]:
        arg = args[i]
        if is_list:
            args[i] = [t if t is None else t.contiguous() for t in arg]
        elif arg is not None:
            args[i] = arg.contiguous()
    whole = getattr(backend, 'operator', None)
    own = None if whole is None else whole(name)
    found = NotImplemented if own is None else own(*args)
    return kernels[name](backend, *args) if found is NotImplemented else found


def _lists(op):
    """Of each argument whether it is a list of tensors; None of one that is no tensor at all."""
    kinds = [str(argument.type) for argument in op._schema.arguments]
    return [('List' in kind) if 'Tensor' in kind else None for kind in kinds]


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


def _differentiable(name, op, lists, run, equations, gradient, why_not):
    # A node of its own name in the graph.
    function = type(_Function)(name, (_Function,), {})

    def call(keyset, *args):
        flat = []
        for arg, is_list in zip(args, lists, strict=True):
            if is_list:
                flat += arg
            elif is_list is not None:
                flat.append(arg)
        x = next(t for t in flat if t is not None)
        # Then nobody stands between this key and the kernel, which is called as it is, a way
        # through the dispatcher less.
        plain = keyset.raw_repr() in _PLAIN_CALLS and _are_plain(flat)
        if not (plain and x.is_cpu):  # then all are
            _check_devices(x.device, flat)
        if _has_tangent(args) or why_not(x, args):
            return equations(*args)
        if torch.is_grad_enabled():
            needs = [t is not None and t.requires_grad for t in flat]
            if True in needs:
                leaves = [t for t, need in zip(flat, needs, strict=True) if need]
                others = []
                direct = run if plain else None
                found = function.apply(name, direct, gradient, args, needs, others, *leaves)
                return (*found, *others) if others or len(found) > 1 else found[0]
        return _below(run if plain else op, args)

    return call


def _check_devices(device, flat):
    for t in flat:
        if t is not None and t.device != device:
            raise dispatch.two_devices(device, t.device)


def _are_plain(flat):
    return _PLAIN_OR_NONE.issuperset(map(type, flat))


class _Function(torch.autograd.Function):
    """An operator with its backward: of `leaves`, the tensors among `args` that need a gradient.

    Its results are those that have one; `others` is filled with the rest, as they are.
    """

    @staticmethod
    def forward(
        ctx: Any,
        name: str,
        run: Callable | None,
        gradient: Gradient,
        args: tuple,
        needs: list[bool],
        others: list,
        *leaves: Tensor,
    ) -> tuple[Tensor, ...]:
        outputs = _below(run or getattr(torch.ops.mmattn, name), args)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        ctx.gradient, ctx.needs, ctx.plain = gradient, needs, run is not None
        ctx.of = name + '_backward'
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*gradient.keep(ctx, args, outputs))
        others += outputs[gradient.outputs :]
        return outputs[: gradient.outputs]

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        # Of a result that was left out, a tensor (0,), there is no gradient.
        grads = [None if g is None or g.shape == (0,) else g for g in given]
        if all(g is None for g in grads):
            return (None,) * len(ctx.needs_input_grad)
        # Unpacked once: checkpointing unpacks nothing twice.
        saved = ctx.saved_tensors
        differentiated = torch.is_grad_enabled() or dispatch.forward_level() >= 0
        if not differentiated and ctx.plain and _stand_alone(saved, grads):
            ctx.backward_op = _runs.get(ctx.of)
        else:
            ctx.backward_op = getattr(torch.ops.mmattn, ctx.of, None)
        below = contextlib.nullcontext if differentiated else torch._C._AutoDispatchBelowAutograd
        with below():
            found = ctx.gradient.backward(ctx, saved, *grads)
        return *(None,) * 6, *(g for g, need in zip(found, ctx.needs, strict=True) if need)


def _stand_alone(saved, grads):
    """Whether a backward may be called as its kernel: what autograd kept and what it gives are
    nothing but memory, of one device, and no mode is on."""
    return (
        not torch._C._len_torch_dispatch_stack()
        and _are_plain(saved)
        and _are_plain(grads)
        and all(g is None or torch._C._dispatch_keys(g).raw_repr() in _PLAIN_TENSORS for g in grads)
    )


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
