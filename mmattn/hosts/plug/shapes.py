"""What a module's output is, read from its dry runs: maps, tokens of a grid, or neither."""

from typing import Any

from torch import Tensor

from .dryrun import Call
from .layouts import Path, Spot, is_pair

# Class tokens and registers before those of a grid.
MOST_PREFIX = 16


class NoMapError(ValueError):
    """A module's output is neither a map nor tokens of a grid."""


def shown(call: Call) -> str:
    """The shapes of an output, for messages."""
    found = [
        str(tuple(value.shape)) if isinstance(value, Tensor) else str(tuple(value))
        for value in call.output.values()
    ]
    return ', '.join(found) if found else 'no tensor'


def spots_of(runs: list[list[Call]], batch: int, said: tuple[int, int] | None = None) -> list[Spot]:
    """The maps in a module's output, in its order.

    Args:
        runs (list[list[Call]]): The module's calls in each dry run, of images of different sizes.
        batch (int): The number of images in them.
        said (tuple[int, int], optional): H and W of tokens, where the user says so.

    Raises:
        NoMapError: if there is none, with the shape; if calls in one run differ in more than size.
    """
    first, second = runs[0], runs[1] if len(runs) > 1 else None
    if second is not None and len(second) != len(first):
        second = None
    found = [
        _spots(call, None if second is None else second[i], batch, said)
        for i, call in enumerate(first)
    ]
    kinds = {tuple((s.path, s.layout, s.channels, s.prefix) for s in spots) for spots in found}
    if len(kinds) > 1:
        each = '; '.join(dict.fromkeys(shown(call) for call in first))
        raise NoMapError(f'it runs {len(first)} times and gives different things: {each}')
    return found[0]


def _spots(call: Call, other: Call | None, batch: int, said: tuple[int, int] | None) -> list[Spot]:
    spots: list[Spot] = []
    tensors: list[tuple[Tensor, Spot]] = []
    reasons = []
    for path, tensor in call.output.items():
        if not isinstance(tensor, Tensor):
            continue
        same = [spot for known, spot in tensors if known is tensor]
        if same:
            same[0].also.append(path)
            continue
        theirs = None if other is None else other.output.get(path)
        try:
            spot = _spot(call, other, path, tensor, theirs, batch, said)
        except NoMapError as error:
            reasons.append(str(error))
            continue
        spots.append(spot)
        tensors.append((tensor, spot))
    _agree(spots, tensors, batch)
    if not spots:
        raise NoMapError(reasons[0] if reasons else f'gives {shown(call)}, no map or grid')
    return spots


def _agree(spots: list[Spot], tensors: list[tuple[Tensor, Spot]], batch: int) -> None:
    """A map that does not show its layout has that of the others in the output."""
    known = {spot.layout for spot in spots if spot.layout in ('NCHW', 'NHWC')}
    for tensor, spot in tensors:
        if spot.layout:
            continue
        if len(known) != 1:
            raise NoMapError(
                f'gives {tuple(tensor.shape)} for a batch of {batch}: which axis holds channels? '
                'Say layout= and channels='
            )
        (spot.layout,) = known
        spot.channels = tensor.shape[1 if spot.layout == 'NCHW' else 3]


def _spot(
    call: Call,
    other: Call | None,
    path: Path,
    a: Tensor,
    b: Any,
    batch: int,
    said: tuple[int, int] | None,
) -> Spot:
    shape = tuple(a.shape)
    b = b if isinstance(b, Tensor) and b.dim() == a.dim() else None
    text = f'gives {shape} for a batch of {batch}'
    if not a.is_floating_point() or a.dim() not in (3, 4):
        raise NoMapError(f'{text}, no map or grid')
    if shape[0] != batch or (b is not None and b.shape[0] != batch):
        raise NoMapError(f'{text}: not an item for each image')
    changed = set() if b is None else {i for i in range(1, a.dim()) if a.shape[i] != b.shape[i]}
    if a.dim() == 4:
        layout = _layout(shape, changed)
        return Spot(path, layout or '', shape[3 if layout == 'NHWC' else 1])
    if 2 in changed:
        raise NoMapError(f'{text}, a sequence with no grid')
    if said is not None:
        prefix = shape[1] - said[0] * said[1]
        if not 0 <= prefix < MOST_PREFIX:
            raise NoMapError(f'{text}, which is no grid={said}')
        return Spot(path, 'NLC', shape[2], prefix, ('fixed', tuple(said)))
    grid = _grid(call, other, path, shape[1])
    if grid is None:
        raise NoMapError(f'{text}, and no grid of so many tokens; say grid=(H, W) if it is one')
    kind, where, prefix = grid
    return Spot(path, 'NLC', shape[2], prefix, (kind, where))


def _layout(shape: tuple[int, ...], changed: set[int]) -> str | None:
    """Where the channels of (N, ., ., .) are; `changed` are the axes that follow the image."""
    if changed:
        if 1 in changed and 3 in changed:
            return None
        return 'NHWC' if 1 in changed else 'NCHW' if 3 in changed else None
    _, a, b, c = shape
    if b == c and a != b:
        return 'NCHW'
    return 'NHWC' if a == b and b != c else None


def _grid(call: Call, other: Call | None, path: Path, length: int) -> tuple[str, Any, int] | None:
    """Where the (H, W) of so many tokens is: kind and place as in `Spot`, tokens before them."""
    if path and isinstance(path[-1], int):
        after = (*path[:-1], path[-1] + 1)
        pair = call.output.get(after, ())
        if is_pair(pair) and pair[0] * pair[1] == length:
            return 'output', after, 0
    for kind, given in (('args', call.args), ('kwargs', call.kwargs)):
        for where, pair in given.items():
            if len(where) == 1 and is_pair(pair) and 0 <= length - pair[0] * pair[1] < MOST_PREFIX:
                return kind, where[0], length - pair[0] * pair[1]
    for i, (name, (h, w)) in reversed([*enumerate(call.convs)]):
        if 0 <= length - h * w < MOST_PREFIX:
            same = other is None or other.convs[i][1] == (h, w)
            return ('fixed', (h, w), length - h * w) if same else ('conv', name, length - h * w)
    return None
