"""The modules that gates go behind, and what is known of their outputs."""

from dataclasses import dataclass, field

from torch import nn

from .dryrun import DryRuns
from .layouts import LAYOUTS, Spot, is_pair
from .shapes import NoMapError, spots_of


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
    """

    at: str
    behind: str
    kind: str
    spots: list[Spot] = field(default_factory=list)
    reason: str = ''
    calls: int = 0

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
        return f'{self.at} ({self.kind}): {maps}{often}'


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


def check_distinct(found: list[Plugged]) -> None:
    seen: dict[str, str] = {}
    for place in found:
        if place.behind in seen:
            raise ValueError(
                f'{seen[place.behind]} and {place.at} are one place, as a sequence ends with its '
                'last module; name one of them'
            )
        seen[place.behind] = place.at


def say(
    found: list[Plugged], channels: int | None, layout: str | None, grid: tuple[int, int] | None
) -> None:
    """Places as the user says they are."""
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
