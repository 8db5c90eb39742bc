"""What is seen of gates once they are in a model: they run, keep shapes, are not frozen."""

import warnings
from typing import Any

from torch import nn

from mmattn.hosts.identity import NAME, signal

from .dryrun import DryRuns, dry_runs, meta_copy
from .modules import Place, placed
from .targets import Plugged


def try_gates(
    model: nn.Module, found: list[Plugged], example: Any, input_size: tuple[int, int] | None
) -> DryRuns:
    """The gates' own calls, in a dry run of the model that has them."""
    return dry_runs(model, [name for place in found for name in place.gates], example, input_size)


def misrun(found: list[Plugged], trial: DryRuns) -> list[Plugged]:
    """The places with a gate that runs more or less often than its module."""
    calls = trial.calls[0]
    return [p for p in found if any(len(calls.get(name, [])) != p.calls for name in p.gates)]


def check_trial(found: list[Plugged], trial: DryRuns) -> None:
    """Raise ValueError for a gate that does not run, or gives another shape than it was given."""
    for place in misrun(found, trial):
        reason = f': {trial.error}' if trial.error else ''
        raise ValueError(f'the gate behind {place.at} does not run whenever that does{reason}')
    for place in found:
        for call in (call for name in place.gates for call in trial.calls[0][name]):
            given, made = (
                None if value is None else tuple(value.shape)
                for value in (call.args.get((0,)), call.output.get(()))
            )
            if given != made:
                raise ValueError(
                    f'the gate behind {place.at} gives {made or "no map"} for {given}; allowed: a '
                    'gate that keeps the shape'
                )


def warn_of_frozen(
    model: nn.Module, found: list[Plugged], hooks: list[Place], start: str | None
) -> None:
    """Raise ValueError or warn of gates that the host freezes, warn of fresh ones behind what is
    frozen by hand: the gates learn, but not what is around them."""
    frozen = _frozen_by_host(model, found)
    if frozen and start is not None:
        raise ValueError(
            f'start={start!r} behind {frozen[0].at}: the host freezes that stage, and {NAME} would '
            'stay 0 for good; allowed: a stage that learns, or frozen_stages below it'
        )
    for place, hook in zip(found, hooks, strict=True):
        hook.frozen = place in frozen
    if frozen:
        warnings.warn(
            f'the gates behind {_names(frozen)} are in a frozen stage: they stay as they were '
            'drawn, and scale its maps for good (an SE halves them); plug behind a stage that '
            'learns, lower frozen_stages, or load gates that were trained',
            stacklevel=3,
        )
    elif start is None and (still := [p for p in found if _is_still(model, p.behind)]):
        gate = model.get_submodule(still[0].gates[0])
        share = signal(gate, still[0].channels[0])
        if not abs(share - 1) < 0.02:
            warnings.warn(
                f'the gates behind {_names(still)} are fresh (output over input {share:.2f}), '
                "and the layers there are frozen and cannot follow; start='identity' begins with "
                'what they know',
                stacklevel=3,
            )


def _frozen_by_host(model: nn.Module, found: list[Plugged]) -> list[Plugged]:
    """The places whose gates the host freezes as soon as it trains."""
    try:
        made = meta_copy(model)
        made.train(True)
    except Exception:  # what cannot be copied is not known
        return []
    return [
        place
        for place in found
        if any(
            learns and not any(learns)
            for name in place.gates
            for learns in [[p.requires_grad for p in made.get_submodule(name).parameters()]]
        )
    ]


def _is_still(model: nn.Module, name: str) -> bool:
    """Whether a module, or where it has no parameters what it is in, learns nothing by itself."""
    gates = {
        id(p)
        for _, owner, place in placed(model)
        for s in place.spots
        for p in getattr(owner, s.name).parameters()
    }
    while True:
        learns = [
            p.requires_grad for p in model.get_submodule(name).parameters() if id(p) not in gates
        ]
        if learns or not name:
            return bool(learns) and not any(learns)
        name = name.rpartition('.')[0]


def _names(places: list[Plugged]) -> str:
    more = f' and {len(places) - 3} more' if len(places) > 3 else ''
    return ', '.join(place.at for place in places[:3]) + more
