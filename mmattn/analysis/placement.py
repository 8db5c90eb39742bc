"""Where a gate can go in a config's model, and what it costs there.

Candidates are the host's slots, position by position and stage by stage, and modules of any name
(`mmattn.plug`). What is measured is the backbone and the neck, on made-up images: whether a gate
helps in a place, only a training says.
"""

import copy
import os
import statistics
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmattn.hosts.building import build_model
from mmattn.hosts.plug import places
from mmattn.ops import use_impl

from .benchmark import saved_bytes, timings
from .complexity import FlopCounter, build

SORTS = ('ms', 'flops', 'params', 'memory')


@dataclass(frozen=True)
class Candidate:
    """A place for a gate.

    Args:
        where (str): For readers.
        plugin (dict, optional): The entry of the backbone's `plugins`, if it is a slot.
        plug (dict, optional): The entry of the config's `plug`, if it is a module.
    """

    where: str
    plugin: dict[str, Any] | None = None
    plug: dict[str, Any] | None = None


@dataclass(frozen=True)
class Row:
    """What a candidate adds to the backbone and the neck; the first row is the config as it is.

    Args:
        number (int): By which a candidate is chosen; 0 is the config as it is.
        params (int), flops (int): As `mmattn.analysis.complexity` counts them, of one image.
        ms (float): Milliseconds of a step, the median over rounds; of the first row all of it.
        share (float): That, of the bare step.
        memory (int): Bytes that a training step keeps for its backward.
        candidate (Candidate, optional): None of the first row.
    """

    number: int
    params: int
    flops: int
    ms: float
    share: float
    memory: int
    candidate: Candidate | None = None

    @property
    def where(self) -> str:
        return self.candidate.where if self.candidate else 'the config as it is'


class Features(nn.Module):
    """A model's backbone and neck, as the codebases call them: images to maps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, x: Tensor) -> list[Tensor]:
        found = self.model.extract_feat(x)
        return [*found] if isinstance(found, (tuple, list)) else [found]


def host_of(config: Config) -> str | None:
    """The type of the backbone, or of the host that stands for it; None if it has no slots."""
    import_module(f'{config.default_scope}.registry').MODELS.import_from_location()
    with DefaultScope.overwrite_default_scope(config.default_scope):
        from mmattn.hosts.slots import find_type

        kind = config.model.backbone.type
        for name in (kind, f'Plugin{kind}'):
            found = find_type(name)
            if found is not None and hasattr(found, '_finish_plugins'):
                return name
    return None


def candidates(
    config: Config, gate: dict[str, Any], at: Iterable[str] = (), start: str | None = None
) -> tuple[list[Candidate], list[str]]:
    """The places of a config's model for a gate.

    Args:
        config (Config): A whole config, of mmpretrain, mmdet or mmseg.
        gate (dict): As an entry's `cfg`.
        at (Iterable[str]): Patterns of modules, as for `mmattn.plug`. Without any: the children of
            a backbone that has no slots, and the neck.
        start (str, optional): How the gates start, as for `mmattn.plug`.

    Returns:
        tuple: the candidates, and lines that say of other places why they are none.

    Raises:
        ValueError: for a gate, a pattern or a `start` that fits nothing.
    """
    started = {} if start is None else dict(start=start)
    host = host_of(config)
    model: Any = build(_with(config, host))
    at = list(at)
    found, refused = [], []
    if host is not None and not at:
        for entry in _slot_entries(model.backbone, gate, started):
            found.append(Candidate(_words(entry), plugin=entry))
    patterns = at or _default_patterns(model, host)
    for place in places(model, patterns) if patterns else ():
        if place.reason:
            refused.append(str(place))
        elif place.at:
            entry = dict(cfg=gate, at=place.at, **started)
            found.append(Candidate(str(place), plug=entry))
    kept, seen = [], set()
    reasons = {line: line for line in refused}  # each once, of the first place that has it
    for candidate in found:
        try:
            built = build(applied(config, [candidate]))
        except ValueError as error:
            refused.append(f'{candidate.where}: {error}')
            reasons.setdefault(str(error), refused[-1])
            continue
        # One stage of a position that only one stage has is all of that position.
        entry = candidate.plugin or candidate.plug or {}
        position = entry.get('position', entry.get('at'))
        key = position, frozenset(built.state_dict())
        if key not in seen:
            kept.append(candidate)
        seen.add(key)
    if not kept:
        said = '; '.join([*reasons.values()][:3]) or 'it has none'
        raise ValueError(f'no place for {gate}: {said}')
    return kept, refused


def applied(config: Config, chosen: Sequence[Candidate]) -> Config:
    """A config with candidates in it, beside the gates that it has."""
    whole = copy.deepcopy(config)
    whole.merge_from_dict(_flat(changes(config, chosen)))
    return whole


def changes(config: Config, chosen: Sequence[Candidate]) -> dict[str, Any]:
    """What a child of a config has to say to have the chosen gates, too."""
    found: dict[str, Any] = {}
    plugins = [candidate.plugin for candidate in chosen if candidate.plugin]
    plug = [candidate.plug for candidate in chosen if candidate.plug]
    if plugins:
        there = [copy.deepcopy(dict(p)) for p in config.model.backbone.get('plugins') or ()]
        backbone: dict[str, Any] = dict(plugins=[*there, *map(copy.deepcopy, plugins)])
        host = host_of(config)
        if host != config.model.backbone.type:
            backbone = dict(type=host, **backbone)
        found['model'] = dict(backbone=backbone)
    if plug:
        there = [copy.deepcopy(dict(entry)) for entry in config.get('plug') or ()]
        found['plug'] = [*there, *map(copy.deepcopy, plug)]
    return found


def write_child(config: Config, chosen: Sequence[Candidate], target: Path) -> None:
    """Write a config that inherits another and has the chosen gates, once it is seen to build.

    Raises:
        FileExistsError: if there is such a file.
        ValueError: if the gates do not go together.
    """
    if target.exists():
        raise FileExistsError(f'{target} exists; it is left as it is')
    build(applied(config, chosen))
    base = os.path.relpath(Path(config.filename).resolve(), target.resolve().parent)
    body = Config(changes(config, chosen)).pretty_text
    words = ', '.join(candidate.where for candidate in chosen)
    text = f'# {words}\n_base_ = {base!r}\n\n{body.rstrip()}\n'
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding='utf-8')


def measure(
    config: Config,
    found: Sequence[Candidate],
    size: tuple[int, int],
    batch: int = 2,
    device: str = 'cpu',
    rounds: int = 5,
    train: bool = True,
    clock: str = 'wall',
) -> list[Row]:
    """Measure a config and each candidate; each against the config, in the same rounds.

    Args:
        config (Config): A whole config.
        found (Sequence[Candidate]): Of `candidates`.
        size (tuple[int, int]): Height and width of the images.
        batch (int): Images a step.
        device (str): Where.
        rounds (int): How often.
        train (bool): Whether a step is one of training, forward and backward.
        clock (str): 'wall' or 'cpu', as for `benchmark.timings`.

    Returns:
        list[Row]: the config, then the candidates in their order.
    """
    x = torch.randn(batch, 3, *size, device=device)
    bare = _features(config, device, train)
    params, flops = _counted(config, size)
    kept = saved_bytes(bare, x) if train else 0
    rows = []
    for number, candidate in enumerate(found, start=1):
        gated_config = applied(config, [candidate])
        gated = _features(gated_config, device, train)
        times = timings(
            {'bare': _step(bare, x, train), 'gated': _step(gated, x, train)},
            torch.device(device),
            rounds,
            seconds=0,
            clock=clock,
        )
        pairs = [*zip(times['gated'], times['bare'], strict=True)]
        more_params, more_flops = _counted(gated_config, size)
        rows.append(
            Row(
                number,
                more_params - params,
                more_flops - flops,
                statistics.median(a - b for a, b in pairs),
                statistics.median((a - b) / b for a, b in pairs),
                saved_bytes(gated, x) - kept if train else 0,
                candidate,
            )
        )
        if number == 1:
            rows.insert(0, Row(0, params, flops, statistics.median(times['bare']), 1.0, kept))
    return rows


def _features(config: Config, device: str, train: bool) -> Features:
    cfg = copy.deepcopy(config.model)
    cfg.pop('data_preprocessor', None)
    for part in (cfg, cfg.backbone):
        part.pop('init_cfg', None)  # weights do not change the time
    with DefaultScope.overwrite_default_scope(config.default_scope), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of fresh gates: nothing is trained here
        torch.manual_seed(0)
        model = build_model(dict(model=cfg, plug=config.get('plug')))
    features = Features(revert_sync_batchnorm(model)).to(device)
    features.train(train)
    return features


def _step(features: Features, x: Tensor, train: bool) -> Any:
    leaves = [p for p in features.parameters() if p.requires_grad]

    def step() -> None:
        loss = sum(out.float().mean() for out in features(x))
        torch.autograd.grad(loss, leaves, allow_unused=True)

    def infer() -> None:
        with torch.no_grad():
            features(x)

    return step if train else infer


def _counted(config: Config, size: tuple[int, int]) -> tuple[int, int]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = build(config)
    x = torch.empty(1, 3, *size, device='meta')
    with use_impl('reference'), torch.no_grad(), FlopCounter() as counter:
        Features(model)(x)
    return sum(p.numel() for p in model.parameters()), counter.flops


def _with(config: Config, host: str | None) -> Config:
    """A config whose backbone is its host, without other changes."""
    if host in (None, config.model.backbone.type):
        return config
    whole = copy.deepcopy(config)
    whole.model.backbone.type = host
    return whole


def _slot_entries(
    backbone: Any, gate: dict[str, Any], started: dict[str, Any]
) -> Iterable[dict[str, Any]]:
    slots = backbone._slots
    for position in slots.positions:
        entry = dict(cfg=gate, position=position, **started)
        yield entry
        if position != 'after_stem':
            for stage in range(slots.num_stages):
                flags = tuple(number == stage for number in range(slots.num_stages))
                yield dict(entry, stages=flags)


def _words(entry: dict[str, Any]) -> str:
    stages = entry.get('stages')
    if stages is None:
        return entry['position'] + ('' if entry['position'] == 'after_stem' else ', every stage')
    return f'{entry["position"]}, stage {stages.index(True) + 1}'


def _default_patterns(model: Any, host: str | None) -> list[str]:
    found = [] if host else [f'backbone.{name}' for name, _ in model.backbone.named_children()]
    return [*found, *(['neck'] if getattr(model, 'neck', None) is not None else [])]


def _flat(nested: dict[str, Any]) -> dict[str, Any]:
    """As `merge_from_dict` takes it: lists are replaced as a whole."""
    found = {}
    for key, value in nested.get('model', {}).get('backbone', {}).items():
        found[f'model.backbone.{key}'] = value
    if 'plug' in nested:
        found['plug'] = nested['plug']
    return found
