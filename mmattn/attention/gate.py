"""What the gates share: checked input, full precision, batches of one value."""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as global_hooks
from torch.nn.modules.batchnorm import _BatchNorm

from mmattn import ops
from mmattn.ops import Norm, check_impl, spatial_conv, two_devices
from mmattn.ops.dispatch import keeps_lists, stands_for_plain
from mmattn.ops.record import is_on, running

from .checks import check_int

# Of the layers that are stood in for: someone may replace it in the class itself.
_FORWARDS: dict[type, Any] = {
    kind: kind.forward
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.Linear, nn.ReLU, nn.Sequential)
}


def mlp(channels: int, hidden: int, bias: bool) -> nn.Sequential:
    """Two fully connected layers with a ReLU between."""
    return nn.Sequential(
        nn.Linear(channels, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, channels, bias=bias)
    )


def mlp_weights(layers: nn.Module) -> list[Any] | None:
    """Weight, bias, weight, bias of an `mlp` that an operator may stand in for, or None: it is
    changed, or somebody listens."""
    if not is_plain(layers, nn.Sequential):
        return None
    kinds = nn.Linear, nn.ReLU, nn.Linear
    inner: list[Any] = list(layers._modules.values())
    if len(inner) != 3 or not all(map(is_plain, inner, kinds)):
        return None
    return [tensor(layer, key) for layer in inner[::2] for key in ('weight', 'bias')]


def runs_kernels(
    op: str,
    x: Tensor,
    impl: str | None,
    tensors: Sequence[Tensor | None],
    identity_scale: Tensor | None = None,
) -> bool:
    """Whether an operator on kernels may stand for all of a gate with these parameters.

    None among them are left out. In 16 bits, the layers run as layers.
    """
    dtype = ops.stats_dtype(x)
    given = [t for t in (*tensors, identity_scale) if t is not None]
    return (
        all(t.dtype is dtype for t in given)
        and ops.runs_kernels(x, impl, given)
        and (identity_scale is None or ops.knows_identity(op, x))
        and (op in ('se', 'eca') or keeps_lists(x))
    )


def move(norm: Any, moments: Tensor) -> None:
    """Move a norm's running statistics towards a batch's, the mean and the variance of `moments`.

    As PyTorch does: by the momentum, or all batches weigh the same.
    """
    with torch.no_grad():
        count = tensor(norm, 'num_batches_tracked').add_(1)
        momentum = 1 / float(count) if norm.momentum is None else norm.momentum
        for key, moment in zip(('running_mean', 'running_var'), moments.unbind(), strict=True):
            tensor(norm, key).lerp_(moment, momentum)


def batch_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(x)`, also where a training batch holds less than two values a channel.

    One value has no variance and PyTorch refuses it (batch 1 on a 1 x 1 map). It is normalised by
    the running statistics instead, where there are any, and leaves them alone. SyncBatchNorm counts
    the values of all processes, all of which have to take part, so it decides for itself.
    """
    if not (
        norm.training
        and x.numel() <= x.shape[1]
        and isinstance(norm, _BatchNorm)
        and not isinstance(norm, nn.SyncBatchNorm)
        and norm.running_mean is not None
    ):
        return norm(x)
    if is_plain(norm, type(norm)) and not listened_to():
        return F.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    norm.training = False  # whoever changed it or listens to it is heard
    try:
        return norm(x)
    finally:
        norm.training = True


def is_plain(module: nn.Module, kind: type) -> bool:
    """Whether a module may be stood in for: it is of that very class, its forward is the class's
    as PyTorch has it, its tensors are ordinary ones, and nobody listens to it.

    Parametrizations change the class; pruning and the older weight and spectral norms listen.
    `listened_to` tells of those who listen to all modules.
    """
    return (
        (type(module) is kind or _kind(module) is kind)
        and 'forward' not in module.__dict__
        and _FORWARDS.get(kind, kind.forward) is kind.forward
        and not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        )
        and _are_ordinary(module._parameters.values())
    )


def _kind(module: nn.Module) -> type[nn.Module]:
    """A module's class. Non-strict export of PyTorch before 2.7 gives a module one of its own, of a
    base that it keeps a path in and of the module's class."""
    kind = type(module)
    if torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling():
        bases = kind.__bases__
        if len(bases) == 2 and bases[0].__name__ == 'AttrProxy':
            return bases[1]
    return kind


def _are_ordinary(parameters: Iterable[Tensor | None]) -> bool:
    """Whether parameters are plain tensors, or stand for such while PyTorch traces (`torch.export`
    puts its own in their places)."""
    for t in parameters:
        kind: type = type(t)
        if not (t is None or kind is Tensor or kind is nn.Parameter or stands_for_plain(kind)):
            return False
    return True


def listened_to() -> bool:
    """Whether somebody listens to all modules."""
    return bool(
        global_hooks._global_forward_hooks
        or global_hooks._global_forward_pre_hooks
        or global_hooks._global_backward_hooks
        or global_hooks._global_backward_pre_hooks
    )


def is_plain_norm(norm: Any, kind: type = nn.BatchNorm1d) -> bool:
    """Whether a norm is a plain BatchNorm that learns and keeps running statistics."""
    return (
        is_plain(norm, kind)
        and norm.affine
        and norm.track_running_stats
        and all(t is not None for t in norm._buffers.values())
    )


def tensor(module: nn.Module, key: str) -> Any:
    """A parameter or buffer of a module, in a tenth of the time that `module.key` takes."""
    found: Tensor | None = module._parameters.get(key)
    found = module._buffers.get(key) if found is None else found
    # The parameters of nn.DataParallel's replicas are mere attributes.
    return module.__dict__.get(key) if found is None else found


def norm_states(norms: Sequence[nn.BatchNorm1d], values: Sequence[int]) -> list[Norm]:
    """What norms of `is_plain_norm` of one channel do to so many values each, as `ops.Norm`s.

    They are asked once for each batch, which they count; of a single value as in `batch_norm`.
    """
    by_batch = [norm.training and count > 1 for norm, count in zip(norms, values, strict=True)]
    counts = [
        tensor(norm, 'num_batches_tracked')
        for norm, counted in zip(norms, by_batch, strict=True)
        if counted
    ]
    if counts:
        torch._foreach_add_(counts, 1)
    states = []
    for norm, counted in zip(norms, by_batch, strict=True):
        momentum = None
        if counted:
            # Without a momentum the running statistics are those of all batches.
            momentum = norm.momentum
            if momentum is None:
                momentum = 1 / float(tensor(norm, 'num_batches_tracked'))
        weight, bias = tensor(norm, 'weight'), tensor(norm, 'bias')
        mean, var = tensor(norm, 'running_mean'), tensor(norm, 'running_var')
        states.append(Norm(weight, bias, mean, var, momentum, norm.eps))
    return states


def as_input_of(layer: nn.Module, v: Tensor) -> Tensor:
    """A descriptor in the dtype of a layer's weight, on whose device it must lie.

    PyTorch lets a product with a weight on the meta device pass, and gives numbers.
    """
    weight = tensor(layer, 'weight')
    if weight is None:
        weight = getattr(layer, 'weight', None)
    if weight is None:  # a norm without one
        return v
    if not isinstance(weight, torch.Tensor):  # a quantised layer: it takes float32
        return v.float()
    if weight.device != v.device:
        raise two_devices(v.device, weight.device)
    return v if v.dtype is weight.dtype else v.to(weight.dtype)


class SpatialConv(nn.Conv2d):
    """A convolution of maps (N, M, H, W) to one, (N, 1, H, W), by `ops.spatial_conv`."""

    def __init__(self, maps: int, kernel_size: int) -> None:
        super().__init__(maps, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, maps: Tensor, impl: str | None = None) -> Tensor:
        out = spatial_conv(maps, self.weight, impl=impl).unsqueeze(1)
        # A fused batch norm leaves a bias.
        return out if self.bias is None else out + self.bias.view(1, 1, 1, 1)


def _full_precision(device_type: str) -> contextlib.AbstractContextManager:
    """Autocast switched off, where it may be on: to switch it takes longer than to ask. The meta
    device has none."""
    may_be_on = torch.compiler.is_compiling() or (
        device_type != 'meta' and torch.is_autocast_enabled(device_type)
    )
    if not may_be_on or device_type == 'meta':
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


class Gate(nn.Module):
    """Base of the gates. A subclass implements `gate(x)`, which `forward` calls on a checked input.

    Autocast is off inside: the ops return float32 descriptors whatever the feature map's dtype, and
    the layers on them are small, so float16 would save nothing and could overflow. In a model
    converted by `.half()` or `.bfloat16()` those layers run in their parameters' dtype.

    y = x + a (g(x) - x) in place of g(x) where a gate has an `identity_scale` a, a parameter of one
    element or of one for each channel; as constructed it has none.

    Layers start as the constructor leaves them: what a host (`mmattn.hosts`) draws its own layers
    from does not reach them. An `init_cfg` in the gate's config does.

    Args:
        in_channels (int): Channels C of the feature map.
        impl (str, optional): 'reference' or 'fast'; None follows `mmattn.ops.get_impl()`.

    Raises:
        ValueError: for an argument outside its allowed values, and in `forward` for an input that
            is not a floating-point (N, in_channels, H, W) with H, W >= 1.
    """

    def __init__(self, in_channels: int, impl: str | None = None) -> None:
        super().__init__()
        check_int('in_channels', in_channels, 1)
        self.in_channels = in_channels
        self.impl = impl if impl is None else check_impl(impl)
        self.register_parameter('identity_scale', None)

    def forward(self, x: Tensor) -> Tensor:
        # While tracing, sizes are tensors: comparing them would only warn.
        if not torch.jit.is_tracing():
            self._check(x)
        with _full_precision(x.device.type):
            if is_on():
                with running(self):
                    return self.gate(x)
            return self.gate(x)

    def gate(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels or 0 in x.shape[2:]:
            raise ValueError(
                f'{type(self).__name__} takes (N, {self.in_channels}, H, W) with '
                f'H, W >= 1, got {tuple(x.shape)}'
            )
        if not x.is_floating_point():
            raise ValueError(f'{type(self).__name__} takes a floating-point input, got {x.dtype}')
