"""How a gate stays behind a module, whatever is then done to the model.

A block, which has children, holds its gate as one more child and runs it in a forward hook: no type
and no name of the host changes. The hook knows the child by name, so that copies of the model have
gates of their own.

A layer (a convolution, a norm, an activation) may be exchanged for another: SyncBN conversion and
fusion of convolutions with norms do, and a hook would be lost without a word. It is wrapped in a
`Behind`, which such tools walk into. Its keys in the state dict stay those of the layer.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .layouts import Spot, at_path, replaced

# What PyTorch's own wrappers of activation checkpointing call the module in them: FSDP and
# distributed checkpoints drop it from names, as the state dict here does.
HOST = '_checkpoint_wrapped_module'


class Place:
    """The gates behind one module, as its forward hook.

    Attributes:
        spots (list[Spot]): Its maps.
        frozen (bool): Whether it was said that the host freezes the gates.
    """

    frozen = False

    def __init__(self, spots: list[Spot]) -> None:
        self.spots = spots

    def __call__(
        self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """The output with its maps gated by the children of `owner`."""
        gated = output
        for spot in self.spots:
            gate = getattr(owner, spot.name)
            grid = spot.find_grid(args, kwargs, output) if spot.grid else None
            y = spot.run(gate, at_path(output, spot.path), grid)
            for path in (spot.path, *spot.also):
                gated = replaced(gated, path, y)
        return gated


class Behind(nn.Module):
    """A layer and the gates behind it, in its place: its attributes and keys are the layer's.

    Args:
        host (nn.Module): The layer.
        place (Place): Its gates, which become children beside it.
    """

    def __init__(self, host: nn.Module, place: Place) -> None:
        super().__init__()
        self.add_module(HOST, host)
        self.place = place
        self.training = host.training
        self._register_state_dict_hook(_without_host)

    @property
    def host(self) -> nn.Module:
        """The layer."""
        return self.get_submodule(HOST)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.place(self, args, kwargs, self.host(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith('__') or name == HOST:
                raise
            return getattr(super().__getattr__(HOST), name)

    def __setattr__(self, name: str, value: Any) -> None:
        host = self.__dict__.get('_modules', {}).get(HOST)
        theirs = host is not None and (name in host._parameters or name in host._buffers)
        if theirs:
            setattr(host, name, value)
        else:
            super().__setattr__(name, value)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # All of them: a further gate may be behind this one.
        gates = tuple(f'{prefix}{name}.' for name in self._modules if name != HOST)
        inner = f'{prefix}{HOST}.'
        for key in [k for k in state_dict if k.startswith(prefix)]:
            if not key.startswith((*gates, inner)):
                state_dict[inner + key[len(prefix) :]] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _without_host(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any
) -> None:
    """The state-dict hook of `Behind`: the layer's keys are called as without it."""
    inner = f'{prefix}{HOST}.'
    for key in [k for k in state_dict if k.startswith(prefix)]:  # all, as their order stays
        value = state_dict.pop(key)
        state_dict[prefix + key[len(inner) :] if key.startswith(inner) else key] = value


def is_layer(module: nn.Module) -> bool:
    """Whether tools may exchange a module, or run its children one after the other."""
    return isinstance(
        module, (_ConvNd, _BatchNorm, nn.Sequential, nn.ModuleList, nn.ModuleDict)
    ) or not any(True for _ in module.children())


def insert(
    model: nn.Module, name: str, place: Place, gates: list[nn.Module], wrap: bool = False
) -> None:
    """Put gates behind a module of `model`, each under the name of its spot.

    Args:
        wrap (bool): Whether a block is wrapped as a layer is: one that may run its own children.
    """
    owner = model.get_submodule(name)
    if wrap or is_layer(owner):
        host, training = owner, owner.training
        owner = Behind(host, place)
        owner.training = training
        _exchange(model, host, owner)
    else:
        owner.register_forward_hook(place, with_kwargs=True)
    for spot, gate in zip(place.spots, gates, strict=True):
        gate.train(owner.training)
        owner.add_module(spot.name, gate)


def _exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another, under each of the names that a model has it by."""
    for parent in [*model.modules()]:
        for child, module in [*parent._modules.items()]:
            if module is old and parent is not new:
                parent._modules[child] = new


def placed(model: nn.Module) -> Iterator[tuple[str, nn.Module, Place]]:
    """Every plugged module of a model: its name, what holds the gates, which they are."""
    for name, module in model.named_modules():
        if isinstance(module, Behind):
            yield name, module, module.place
        for hook in module._forward_hooks.values():
            if isinstance(hook, Place):
                yield name, module, hook


def remove(model: nn.Module, owner: nn.Module, place: Place) -> None:
    """Undo `insert`."""
    if isinstance(owner, Behind):
        _exchange(model, owner, owner.host)
        return
    for number, hook in [*owner._forward_hooks.items()]:
        if hook is place:
            del owner._forward_hooks[number]
            owner._forward_hooks_with_kwargs.pop(number, None)
    for spot in place.spots:
        delattr(owner, spot.name)
