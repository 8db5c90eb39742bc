"""`plug` puts gates behind modules of any model, `unplug` takes them away."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from mmattn.hosts.identity import check_start, start_as_identity

from .dryrun import dry_runs
from .gates import Gate, build_gate
from .initialising import guard_init, unguard_init
from .layouts import GridKeeper, Spot
from .modules import Place, insert, placed, remove
from .patterns import find, patterns_of
from .targets import Plugged, check_all_fit, distinct, read, resolved, say
from .trial import check_trial, misrun, try_gates, warn_of_frozen

_WRAPPERS = ('DistributedDataParallel', 'FullyShardedDataParallel', 'DataParallel')


def plug(
    model: nn.Module,
    gate: Gate,
    at: str | Iterable[str],
    *,
    start: str | None = None,
    channels: int | None = None,
    layout: str | None = None,
    grid: tuple[int, int] | None = None,
    example: Any = None,
    input_size: tuple[int, int] | None = None,
) -> list[Plugged]:
    """Put a gate behind modules of any model, in place.

    The model's own weights and state-dict keys stay; each gate adds its own, below the module's
    name. Channels and layout are found by a dry run of a copy without numbers. Do this before an
    optimiser takes the parameters, before the model is wrapped (DDP, FSDP) or compiled, and before
    a checkpoint of the plugged model is loaded.

    A module that gives several maps (a neck) gets a gate for each. Of tokens, those of the grid
    pass the gate as a map; class tokens are left alone.

    Args:
        model (nn.Module): Any model.
        gate: A class (`SE`), a function of the channels (`lambda c: CAT(c, reduction=8)`), a dict
            as in a config (`dict(type='CAT', reduction=8)`), a name; for one place also a module.
        at (str | Iterable[str]): Patterns of module names; part by part, so that `*` does not cross
            a dot, and `**` does.
        start (str, optional): 'identity' lets the model compute at first what it did without the
            gate, by a learnt factor for each channel; 'identity-scalar' has one for the gate. None
            starts as the gate's paper does.
        channels, layout (int, str, optional): Of the output, where a dry run does not find them:
            'NCHW' (if only `channels` is given), 'NHWC', or 'NLC', which needs `grid` too.
        grid (tuple[int, int], optional): H and W of tokens, where the model does not tell.
        example: What the dry run calls the model with: a tensor, a tuple of arguments, a dict of
            keywords. None is images of the sizes that models usually take.
        input_size (tuple[int, int], optional): H and W of those images.

    Returns:
        list[Plugged]: where the gates are.

    Raises:
        ValueError: for a pattern that fits no module, a module whose output is no map and no grid
            of tokens or that never runs, `channels` that it has not, a gate that cannot be built
            or run there or that changes the shape, an identity start in a stage that the host
            freezes, a model that is wrapped or compiled. Nothing is changed then.

    Warns:
        UserWarning: for gates that the host freezes, or that are fresh behind frozen layers.
    """
    check_start(start, 'plug')
    _check_open(model)
    patterns = patterns_of(at)
    found = [resolved(model, name) for name in find(model, patterns)]
    found = distinct(model, found, patterns)
    runs = dry_runs(model, [place.behind for place in found], example, input_size)
    said = channels is not None or layout is not None
    if said:
        say(found, channels, layout, grid, runs)
    else:
        read(found, runs, grid)
    check_all_fit(found)
    number = sum(len(place.spots) for place in found)
    if isinstance(gate, nn.Module) and number > 1:
        raise ValueError(
            f'a module can be in one place, and {", ".join(patterns)} has {number}; give its class'
        )
    built, count = [], len([*placed(model)])
    for place in found:
        gates = [_gate_for(model, place, spot, gate, start, count) for spot in place.spots]
        built.append(gates)
        count += len(gates)
    hooks = [Place(place.spots) for place in found]
    try:
        for place, hook, gates in zip(found, hooks, built, strict=True):
            insert(model, place.behind, hook, gates, wrap=said)
            _keep_grids(model, place.spots)
        if not said:
            trial = try_gates(model, found, example, input_size)
            wrong = misrun(found, trial)
            for place, hook, gates in zip(found, hooks, built, strict=True):
                if place in wrong:  # it runs its own children, the gate among them
                    take(model, [hook])
                    insert(model, place.behind, hook, gates, wrap=True)
                    _keep_grids(model, place.spots)
            check_trial(found, try_gates(model, found, example, input_size) if wrong else trial)
        warn_of_frozen(model, found, hooks, start)
    except BaseException:
        take(model, hooks)
        raise
    guard_init(model)
    return found


def unplug(model: nn.Module, at: str | Iterable[str] | None = None) -> list[str]:
    """Take gates of `plug` out of a model, in place: what it is then is the model without them.

    Args:
        model (nn.Module): A plugged model, or a copy of one.
        at (str | Iterable[str], optional): Patterns as in `plug`; None is all of them.

    Returns:
        list[str]: the names of the modules that had gates.

    Raises:
        ValueError: if no gate is there, or the model is wrapped or compiled.
    """
    _check_open(model)
    there = [(name, place) for name, _, place in placed(model)]
    if at is not None:
        wanted = {resolved(model, name).behind for name in find(model, at)}
        there = [(name, place) for name, place in there if name in wanted]
    if not there:
        raise ValueError('no gate of plug is there' + ('' if at is None else f', at {at!r}'))
    take(model, [place for _, place in there])
    if not [*placed(model)]:
        unguard_init(model)
    return list(dict.fromkeys(name for name, _ in there))


def places(
    model: nn.Module,
    at: str | Iterable[str] = '**',
    *,
    example: Any = None,
    input_size: tuple[int, int] | None = None,
) -> list[Plugged]:
    """Where gates can be in a model: each module that fits `at`, with channels, layout or a reason.

    Arguments and errors are as in `plug`. Nothing is changed.
    """
    found = [resolved(model, name) for name in find(model, at)]
    read(found, dry_runs(model, [place.behind for place in found], example, input_size))
    return found


def _check_open(model: nn.Module) -> None:
    """A model that others have read already would run without the gate, or train it apart."""
    for module in model.modules():
        kinds = [cls.__name__ for cls in type(module).__mro__]
        wrapper = next((kind for kind in kinds if kind in _WRAPPERS), None)
        if wrapper:
            raise ValueError(f'the model is wrapped by {wrapper}; plug and unplug it before')
        if 'OptimizedModule' in kinds or getattr(module, '_compiled_call_impl', None) is not None:
            raise ValueError('the model is compiled; plug and unplug it before')


def _gate_for(
    model: nn.Module, place: Plugged, spot: Spot, gate: Gate, start: str | None, number: int
) -> nn.Module:
    """A gate on the device and in the precision of what it is behind."""
    made, name = build_gate(gate, spot.channels, number + place.spots.index(spot))
    module = model.get_submodule(place.behind)
    if len(place.spots) > 1:
        name = f'{name}_{place.spots.index(spot)}'
    spot.name, further = name, 2
    while hasattr(module, spot.name):
        spot.name, further = f'{name}{further}', further + 1
    if start is not None:
        start_as_identity(made, spot.channels, start, f'gate {name!r} behind {place.at}')
    like = next((p for m in (module, model) for p in m.parameters() if p.is_floating_point()), None)
    return made if like is None else made.to(like.device, like.dtype)


def _keep_grids(model: nn.Module, spots: list[Spot]) -> None:
    for spot in spots:
        if spot.grid and spot.grid[0] == 'conv':
            spot.grid = ('kept', GridKeeper(spot.grid[1]))
        if spot.grid and spot.grid[0] == 'kept':
            keeper = spot.grid[1]
            model.get_submodule(keeper.conv).register_forward_hook(keeper)


def take(model: nn.Module, hooks: list[Place]) -> None:
    """Take the gates of some places out of a model."""
    # The last first: it may be behind what another holds.
    for _, owner, place in reversed([*placed(model)]):
        if any(place is hook for hook in hooks):
            remove(model, owner, place)
            keepers = [s.grid[1] for s in place.spots if s.grid and s.grid[0] == 'kept']
            for module in model.modules():
                for number, hook in [*module._forward_hooks.items()]:
                    if any(hook is keeper for keeper in keepers):
                        del module._forward_hooks[number]
