"""The modules that gates go behind, and what is known of their outputs."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from .dryrun import DryRuns
from .layouts import CHANNEL_AXIS, LAYOUTS, Spot, is_pair
from .shapes import NoMapError, shown, spots_of


@dataclass
class Plugged:
    """One place of a model: what `plug` put there, or `places` found there.

    Attributes:
        at (str): The name of the module; `behind` is the one that the gate is behind in it, the
            last of an `nn.Sequential`.
        kind (str): Its class.
        spots (list[Spot]): The maps in its output, with channels, layout and the gates' names.
        reason (str): Why no gate can be there; '' if one can.
        calls (int): How often it runs in one forward; 0 if nothing is known.
        also (list[str]): Other names of `behind` in the model, which shares it.
    """

    at: str
    behind: str
    kind: str
    spots: list[Spot] = field(default_factory=list)
    reason: str = ''
    calls: int = 0
    also: list[str] = field(default_factory=list)

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(spot.channels for spot in self.spots)

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates' names in the model."""
        return tuple(f'{self.behind}.{spot.name}' for spot in self.spots)

    def __str__(self) -> str:
        if self.reason:
            return f'{self.at} ({self.kind}): {self.reason}'
        maps = ', '.join(f'{spot.channels} {spot.layout}' for spot in self.spots)
        often = f', runs {self.calls} times' if self.calls > 1 else ''
        shared = f', also called {", ".join(self.also)}' if self.also else ''
        return f'{self.at} ({self.kind}): {maps}{often}{shared}'


def resolved(model: nn.Module, name: str) -> Plugged:
    """The module itself; of a sequence the last, behind which is behind the sequence.

    A gate among the children of an `nn.Sequential` would be run by it, counted and indexed.
    """
    behind, module = name, model.get_submodule(name)
    kind = type(module).__name__
    while type(module).forward is nn.Sequential.forward and (
        children := [*module.named_children()]
    ):
        last, module = children[-1]
        behind = f'{behind}.{last}'
    return Plugged(name, behind, kind)


def distinct(model: nn.Module, found: list[Plugged], patterns: list[str]) -> list[Plugged]:
    """Each place once: a sequence and the last module in it are one place, and so is a module that
    the model has under several names. The first name is kept, which is the outermost.

    Raises:
        ValueError: if a place is named twice without `*`: a gate for each may be meant.
    """
    named = set(patterns)
    first: dict[nn.Module, Plugged] = {}
    for place in found:
        module = model.get_submodule(place.behind)
        known = first.setdefault(module, place)
        if known is not place and {known.at, place.at} <= named:
            why = (
                'a sequence ends with its last module'
                if known.behind == place.behind
                else 'they are two names of one module'
            )
            raise ValueError(
                f'{known.at} and {place.at} are one place, as {why}; name one of them, or plug '
                'twice for two gates'
            )
    for name, module in model.named_modules(remove_duplicate=False):
        if module in first and name != first[module].behind:
            first[module].also.append(name)
    return [*first.values()]


def say(
    found: list[Plugged],
    channels: int | None,
    layout: str | None,
    grid: tuple[int, int] | None,
    runs: DryRuns,
) -> None:
    """Places as the user says they are, held against what is seen of them.

    Raises:
        ValueError: for arguments that do not go together, or that a dry run shows to be wrong.
    """
    layout = 'NCHW' if layout is None else layout
    if layout not in LAYOUTS:
        raise ValueError(f'layout {layout!r}; allowed: {", ".join(LAYOUTS)}')
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        raise ValueError(f'layout= needs channels=, an integer from 1 on, got {channels!r}')
    if (layout == 'NLC') != (grid is not None) or (grid is not None and not is_pair(grid)):
        raise ValueError(f"layout='NLC' and grid=(H, W) go together, got {layout!r} and {grid!r}")
    for place in found:
        where = ('fixed', tuple(grid)) if grid else None
        place.spots = [Spot((), layout, channels, 0, where)]
        for call in runs.calls[0].get(place.behind, ()):
            out, axis = call.output.get(()), CHANNEL_AXIS[layout]
            if not isinstance(out, Tensor) or out.dim() != len(layout):
                raise ValueError(
                    f'{place} was said of it, and it gives {shown(call)}; allowed: a layout '
                    'of so many axes, or neither channels= nor layout= for what is no map by itself'
                )
            if out.shape[axis] != channels:
                raise ValueError(
                    f'{place} was said of it, and it gives {shown(call)}, which has '
                    f'{out.shape[axis]} channels {layout}; allowed: channels={out.shape[axis]}, '
                    'or neither channels= nor layout='
                )


def read(found: list[Plugged], runs: DryRuns, grid: tuple[int, int] | None = None) -> None:
    """Places as the dry runs show them."""
    for place in found:
        calls = [run.get(place.behind, []) for run in runs.calls]
        place.calls = len(calls[0])
        if not calls[0]:
            place.reason = 'never runs: not called in a forward of the model'
            if runs.error:
                place.reason = (
                    f'not reached: {runs.error}; allowed: channels= and layout=, an example= that '
                    'the model is called with, or input_size='
                )
            continue
        try:
            place.spots = spots_of(calls, runs.batch, grid)
        except NoMapError as error:
            place.reason = str(error)


def check_all_fit(found: list[Plugged]) -> None:
    """Raise ValueError if one of the places can have no gate, with the reasons of the first."""
    refused = [str(place) for place in found if place.reason]
    if not refused:
        return
    many = f' ({len(refused)} of the {len(found)} that at= names)' if len(found) > 1 else ''
    more = f'; and {len(refused) - 3} more' if len(refused) > 3 else ''
    rest = '; mmattn.hosts.plug.places lists those that can' if len(refused) < len(found) else ''
    raise ValueError(f'no gate can be behind {"; ".join(refused[:3])}{more}{many}{rest}')
