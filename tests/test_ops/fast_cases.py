"""What the tests of the fast ops share: every op with factors, the comparison with float64."""

import on_kernels
import torch

from mmattn.ops import native, reference

TOLERANCE = {  # relative to the largest value of the tensor compared: sums cancel
    torch.float64: 1e-10,
    torch.float32: 3e-6,
    torch.bfloat16: 5e-3,
    torch.float16: 8e-4,
}
TAPS = torch.tensor(
    [0.11, 0.21, 0.39, 0.19, 0.1], dtype=torch.float64
)  # no symmetry to hide behind
LAYOUTS = dict(contiguous=torch.contiguous_format, channels_last=torch.channels_last)


def cases(n, c, h, w):
    """(op, factors or taps, options) for maps of this shape."""

    def factor(*size):
        return torch.rand(size, dtype=torch.float64)

    def rank1():
        return factor(n, c), factor(n, h), factor(n, w)

    return {
        'channel_pool': ('channel_pool', (), {}),
        'channel_pool-max': ('channel_pool', (), dict(maximum=True)),
        'channel_scale': ('channel_scale', (factor(n, c),), {}),
        'spatial_scale': ('spatial_scale', (factor(n, h, w),), {}),
        'product_scale': ('product_scale', (factor(n, c), factor(n, h, w)), {}),
        'sum_scale': ('sum_scale', (factor(n, c), factor(n, h, w)), {}),
        'strip_pool': ('strip_pool', (), {}),
        'strip_pool-channel': ('strip_pool', (), dict(channel=True)),
        'coord_scale': ('coord_scale', (factor(n, c, h), factor(n, c, w)), {}),
        'rank1_scale': ('rank1_scale', (rank1(),), {}),
        'rank1_scale-dual': ('rank1_scale', (rank1(), rank1()), {}),
        'spatial_pool': ('spatial_pool', (factor(n, c) - 0.5,), {}),
        'entropy_pool': ('entropy_pool', (TAPS,), {}),
        'entropy_pool-3': ('entropy_pool', (TAPS[:3],), {}),
        'entropy_pool-1': ('entropy_pool', (TAPS[2:3],), {}),
        'entropy_pool-channel': ('entropy_pool', (TAPS,), dict(spatial=False)),
        'entropy_pool-spatial': ('entropy_pool', (TAPS,), dict(channel=False)),
        'entropy_pool-no-ent': ('entropy_pool', (TAPS,), dict(ent=False)),
        'entropy_pool-ent': ('entropy_pool', (TAPS,), dict(avg=False, max=False)),
    }


NAMES = tuple(cases(1, 1, 1, 1))


def tensors(value):
    """The tensors of nested tuples, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value if v is not None for t in tensors(v)]


def cast(args, dtype, grad=True):
    """Leaves of this dtype; the taps (1-D) are constants."""
    if isinstance(args, torch.Tensor):
        return args.detach().to(dtype).requires_grad_(grad and args.dim() > 1)
    return tuple(cast(a, dtype, grad) for a in args)


def run(op, x, args, options, grads=None):
    """Outputs, and the gradients of x and of the factors."""
    outputs = tensors(op(x, *args, **options))
    leaves = [x, *(t for t in tensors(args) if t.requires_grad)]
    if grads is None:
        g = torch.Generator().manual_seed(1)
        grads = [
            torch.randn(o.shape, generator=g, dtype=torch.float64).to(o.dtype) for o in outputs
        ]
    else:
        grads = [g.to(o.dtype) for g, o in zip(grads, outputs, strict=True)]
    return outputs, torch.autograd.grad(outputs, leaves, grads), grads


def fast(name):
    return lambda x, *args, **options: getattr(on_kernels, name)(native, x, *args, **options)


def check(case, x, layout, slack=1.0):
    """`compare`, and assert. An entropy is a difference: exact to a rounding of one, not of 0."""
    assert_close(
        *compare(case, x, layout), x.dtype, slack, 1.0 if case[0] == 'entropy_pool' else 1e-36
    )


def alone(case, x, layout):
    """What the kernels give, compared with nothing: outputs, then gradients."""
    name, args, options = case
    args = cast(args, torch.float64 if x.dtype == torch.float64 else torch.float32)
    x = x.clone().contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    outputs, grads, _ = run(fast(name), x, args, options)
    return [*outputs, *grads]


def compare(case, x, layout):
    """Fast against float64 reference on x (of any dtype); returns the two lists of tensors."""
    name, args, options = case
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    args = cast(args, acc)
    args64 = cast(args, torch.float64)
    ours = x.clone().contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    theirs = x.double().requires_grad_()
    out, grad, grads = run(fast(name), ours, args, options)
    out64, grad64, _ = run(getattr(reference, name), theirs, args64, options, grads)
    assert grad[0].dtype == x.dtype
    assert all(t.dtype == (x.dtype if t.shape == x.shape else acc) for t in out)
    assert all(t.dtype == acc for t in grad[1:])
    for t in (*out, *grad):  # y and dx: the memory format of x
        assert t.shape != x.shape or t.is_contiguous(memory_format=LAYOUTS[layout])
    return [*out, *grad], [*out64, *grad64]


def assert_close(ours, theirs, dtype, slack=1.0, floor=1e-36):
    """Each tensor within TOLERANCE of its largest value (of `floor`, where that is larger)."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        a, b = a.detach().double(), b.detach().double()
        assert a.shape == b.shape
        bound = slack * TOLERANCE[dtype] * max(float(b.abs().max()), floor)
        error = float((a - b).abs().max())
        assert error <= bound, f'tensor {i}: off by {error:.3g}, allowed {bound:.3g}'
