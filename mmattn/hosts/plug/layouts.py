"""How a gate, which maps (N, C, H, W) to the same, is run on what a module gives."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# Maps with the channels first, with the channels last, and tokens of a grid.
LAYOUTS = ('NCHW', 'NHWC', 'NLC')
CHANNEL_AXIS = {layout: layout.index('C') for layout in LAYOUTS}
Path = tuple[Any, ...]


def is_pair(value: Any) -> bool:
    """Whether a value may be a grid's (H, W)."""
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in value)
    )


def leaves(value: Any, path: Path = ()) -> dict[Path, Any]:
    """Tensors and pairs of integers in an output of tuples, lists and dicts, by their paths."""
    if isinstance(value, Tensor) or is_pair(value):
        return {path: value}
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (tuple, list)):
        items = enumerate(value)
    else:
        return {}
    return {p: v for key, item in items for p, v in leaves(item, (*path, key)).items()}


def at_path(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


def replaced(value: Any, path: Path, new: Any) -> Any:
    """The same output with another thing at `path`; what holds it is copied, not changed."""
    if not path:
        return new
    key, rest = path[0], path[1:]
    inner = replaced(value[key], rest, new)
    if isinstance(value, Mapping):
        kind: Callable[..., Any] = type(value)
        return kind((k, inner if k == key else v) for k, v in value.items())
    items = [inner if i == key else v for i, v in enumerate(value)]
    return type(value)(*items) if hasattr(value, '_fields') else type(value)(items)


class GridKeeper:
    """A forward hook of a convolution that keeps its output's (H, W), for tokens made of it.

    Args:
        conv (str): The convolution's name in the model.
    """

    def __init__(self, conv: str) -> None:
        self.conv = conv
        self.size: tuple[int, int] | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.size = (output.shape[-2], output.shape[-1])


@dataclass
class Spot:
    """One map in a module's output, and the gate that it passes.

    Attributes:
        path (tuple): Where in the output: () where that is the map itself, (0,) for its first item.
        layout (str): One of `LAYOUTS`.
        channels (int): C.
        prefix (int): How many tokens before the grid's are left alone (class tokens, registers).
        grid: For tokens, where their (H, W) is: ('output', path), ('args', index), ('kwargs', key),
            ('fixed', (H, W)) or ('conv', name); this becomes ('kept', GridKeeper) in a model.
        also (list[tuple]): Further paths at which the output has the same tensor.
        name (str): The gate's name among the module's children.
    """

    path: Path = ()
    layout: str = 'NCHW'
    channels: int = 0
    prefix: int = 0
    grid: tuple[str, Any] | None = None
    also: list[Path] = field(default_factory=list)
    name: str = ''

    def find_grid(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self.grid is None:
            return None
        kind, where = self.grid
        if kind == 'output':
            return at_path(output, where)
        if kind == 'fixed':
            return where
        if kind == 'kept':
            return where.size
        return args[where] if kind == 'args' else kwargs[where]

    def run(
        self,
        gate: Callable[[Tensor], Tensor],
        x: Tensor,
        grid: tuple[int, int] | None,
    ) -> Tensor:
        """The gate on a map or on tokens; the result has the layout of `x`.

        Raises:
            ValueError: for what has not the layout or the channels; for tokens that are not
                `prefix` and a grid's.
        """
        if not torch.jit.is_tracing():
            self._check(x)
        if self.layout == 'NCHW':
            return gate(x)
        # What hosts do next may need the memory to lie as theirs does: `.view`.
        if self.layout == 'NHWC':
            return gate(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()
        tokens = x[:, self.prefix :] if self.prefix else x
        if not torch.jit.is_tracing() and (grid is None or tokens.shape[1] != grid[0] * grid[1]):
            raise ValueError(
                f'the gate {self.name!r} takes {self.prefix} tokens and those of a grid of '
                f'{grid}, got {x.shape[1]}; allowed: images of the size that it was plugged '
                'at (input_size=), or a place that knows its grid'
            )
        maps = tokens.transpose(1, 2).unflatten(2, tuple(grid or ()))
        tokens = gate(maps).flatten(2).transpose(1, 2)
        if self.prefix:
            return torch.cat((x[:, : self.prefix], tokens), 1)
        return tokens.contiguous()

    def _check(self, x: Any) -> None:
        if not isinstance(x, (Tensor, tuple, list, dict)):  # what stands for a tensor in a trace
            return
        shape = tuple(x.shape) if isinstance(x, Tensor) else ()
        if len(shape) != len(self.layout) or shape[CHANNEL_AXIS[self.layout]] != self.channels:
            found = shape or type(x).__name__
            raise ValueError(
                f'the gate {self.name!r} was put there for {self.channels} channels {self.layout}, '
                f'and its module gives {found}; allowed: channels= and layout= of that'
            )
