"""Which gates of a trained model do something: how much each varies, and what is lost where one is
replaced by its mean.

The mean is one number for each channel, over pictures and positions: what the layers around the
gate could do as well, at no cost. So a gate whose replacement changes nothing may be left out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from torch import Tensor, nn

from mmattn.runs.errors import UserError

from .gates import Seen, gates_of, recording
from .pictures import innermost

# The first of these that an evaluator gives is the metric, if none is named.
METRICS = (
    'accuracy/top1',
    'coco/segm_mAP',
    'coco/bbox_mAP',
    'pascal_voc/AP',
    'pascal_voc/mAP',
    'mIoU',
)
OUTPUTS = 64  # pictures whose features are compared
IMAGES_OF_ALL = 'evaluates on all pictures, whatever --images says'


@dataclass
class Report:
    """A gate's row.

    Args:
        mean, spread (float): Of all that it multiplied by. `spread`, and the three parts of it, are
            standard deviations: between `channels` (of their means), between `positions` (of their
            means, in a picture) and between `pictures` (of a channel's means).
        identity (list of float, optional): Least, mean and largest `identity_scale`.
        output (float): How far the features move when it is replaced by its mean: the norm of the
            difference over the norm, a mean over pictures.
        metric (float, optional): With the gate replaced; `change` is that minus the whole model's.
    """

    name: str
    kind: str
    mean: float
    spread: float
    channels: float
    positions: float
    pictures: float
    identity: list[float] | None
    output: float = 0.0
    metric: float | None = None
    change: float | None = None


@dataclass
class Whole:
    """The report of a model: `metric` by its name, on so many `images`, a row a gate, and what is
    left with `all_replaced` at once: output and metric as in `Report`."""

    images: int
    metric: str | None
    value: float | None
    rows: list[Report] = field(default_factory=list)
    all_replaced: tuple[float, float | None] = (0.0, None)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Sums:
    """The statistics of a gate, batch by batch; foreign gates have the ratio of their output."""

    def __init__(self) -> None:
        self.kind = ''
        self.identity: Tensor | None = None
        self.fit: Tensor | float = 0.0  # (2, C) once there is a batch
        self.count = 0
        self.total, self.squares, self.by_position = 0.0, 0.0, 0.0
        self.of_pictures: list[Tensor] = []  # a channel's mean, (N, C)

    def add(self, seen: Seen) -> None:
        self.kind, self.identity = seen.kind, seen.identity
        assert seen.ratio is not None and seen.fit is not None  # of a pass
        self.fit = self.fit + seen.fit.double()
        factors = seen.attentions()
        whole = (seen.ratio[:, None] if factors is None else factors).double()
        self.count += len(whole)
        # Axes of ones count as if they were as long as the map: means are the same.
        self.total += float(whole.mean((1, 2, 3)).sum())
        self.squares += float(whole.square().mean((1, 2, 3)).sum())
        self.by_position += float(whole.mean(1).var((1, 2), correction=0).sum())
        self.of_pictures.append(whole.mean((2, 3)))

    @property
    def channel_means(self) -> Tensor:
        """(C,), of the recorded factors; of a foreign gate that which fits its output best."""
        means = torch.cat(self.of_pictures).mean(0)
        if len(means) > 1 or not isinstance(self.fit, Tensor) or self.fit.shape[1] == 1:
            return means.float()
        products, squares = self.fit
        return (products / squares.clamp_min(1e-12)).float()

    def report(self, name: str) -> Report:
        means = torch.cat(self.of_pictures)
        mean = self.total / self.count
        a = self.identity
        return Report(
            name,
            self.kind,
            mean,
            max(self.squares / self.count - mean**2, 0.0) ** 0.5,
            float(means.mean(0).var(correction=0).sqrt()),
            (self.by_position / self.count) ** 0.5,
            float(means.var(0, correction=0).mean().sqrt()),
            None if a is None else [float(a.min()), float(a.mean()), float(a.max())],
        )


@contextmanager
def replaced(means: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Gates multiply each channel by its mean (C,), or all by one (1,), and by nothing else."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return (args[0] * means[module].to(args[0].device)[:, None, None]).to(y.dtype)

    handles = [module.register_forward_hook(hook) for module in means]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Trial:
    """A model on its config's test set, as often as asked.

    Args:
        cfg (Config): Whose scope has been entered.
        model (nn.Module): In eval mode.
        images (int, optional): Only the first so many pictures.
        workers (int): That load data.
        metric (str, optional): One of the evaluator's; None takes the first of `METRICS`.
        evaluate (bool): Whether to have a metric at all.

    Raises:
        UserError: if the config has no test set, or its evaluator needs all pictures.
    """

    def __init__(
        self,
        cfg: Config,
        model: nn.Module,
        images: int | None = None,
        workers: int = 0,
        metric: str | None = None,
        evaluate: bool = True,
    ) -> None:
        if not cfg.get('test_dataloader'):
            raise UserError('the config has no test_dataloader, on which gates are looked at')
        loader = cfg.test_dataloader.copy()
        loader.update(num_workers=workers, persistent_workers=workers > 0)
        evaluators = cfg.get('test_evaluator') if evaluate else None
        if images is not None:
            innermost(loader.dataset)['indices'] = images
            for one in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators or {}]:
                if 'Coco' in one.get('type', ''):
                    raise UserError(f'{one["type"]} {IMAGES_OF_ALL}: leave it out, or --no-metric')
        self.model, self.metric = model, metric
        self.loader = Runner.build_dataloader(loader, seed=0)
        self.evaluator = Evaluator(evaluators) if evaluators else None
        if self.evaluator is not None:
            self.evaluator.dataset_meta = getattr(self.loader.dataset, 'metainfo', None)

    @property
    def images(self) -> int:
        return len(self.loader.dataset)

    def run(
        self, after_batch: Callable[[], Any] = lambda: None
    ) -> tuple[float | None, list[Tensor]]:
        """The metric, and the features of the first pictures, a tensor (N, F) a batch."""
        model: Any = self.model
        features: list[Tensor] = []
        kept: list[Tensor] = []

        def keep(module: nn.Module, args: Any, out: Any) -> None:
            if sum(map(len, features)) < OUTPUTS:
                kept.append(_flat(out))

        watched = model.neck if getattr(model, 'with_neck', False) else None
        handle = (watched or model.backbone).register_forward_hook(keep)
        try:
            with torch.no_grad():
                for batch in self.loader:
                    outputs = model.test_step(batch)
                    if self.evaluator is not None:
                        self.evaluator.process(data_samples=outputs, data_batch=batch)
                    features += kept
                    kept.clear()
                    after_batch()
        finally:
            handle.remove()
        return self._metric(), features

    def _metric(self) -> float | None:
        if self.evaluator is None:
            return None
        found = self.evaluator.evaluate(self.images)
        if self.metric is None:
            self.metric = next((name for name in METRICS if name in found), None)
        if self.metric not in found:
            known = ', '.join(found)
            raise UserError(f'no metric is called {self.metric}; the evaluator gives {known}')
        return float(found[self.metric])


def _flat(out: Tensor | Sequence[Tensor]) -> Tensor:
    """Features of a batch, of one level or several, as (N, F) on the CPU."""
    levels = [out] if isinstance(out, Tensor) else list(out)
    return torch.cat([t.detach().float().flatten(1).cpu() for t in levels], 1)


def _moved(base: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The mean over pictures of |other - base| / |base|."""
    parts = [
        (b - a).norm(dim=1) / a.norm(dim=1).clamp_min(1e-12)
        for a, b in zip(base, other, strict=True)
    ]
    return float(torch.cat(parts).mean())


def report(trial: Trial, say: Callable[[str], Any] = lambda text: None) -> Whole:
    """The report of a model; its test set is run once, and once more for each gate.

    Args:
        trial (Trial): The model and its test set.
        say (Callable): Takes a line of progress.

    Raises:
        UserError: if the model has no gates, or the evaluator has no such metric.
    """
    places = gates_of(trial.model)
    if not places:
        raise UserError('the model has no gates: none of its modules is one of mmattn or a plugin')
    sums = {place.name: Sums() for place in places}
    say(f'{trial.images} pictures, {len(places)} gates')
    with recording(places) as seen:

        def add() -> None:
            for name, one in seen.items():
                sums[name].add(one)
            seen.clear()

        trial.run(add)
    value, base = trial.run()
    whole = Whole(trial.images, trial.metric, value)
    means = {p.module: sums[p.name].channel_means for p in places if sums[p.name].count}
    for place in places:
        if place.module not in means:
            say(f'{place.name} did not run')
            continue
        row = sums[place.name].report(place.name)
        with replaced({place.module: means[place.module]}):
            row.metric, other = trial.run()
        row.output = _moved(base, other)
        if value is not None and row.metric is not None:
            row.change = row.metric - value
        whole.rows.append(row)
        say(f'{place.name}: its mean moves the features by {row.output:.1%}')
    with replaced(means):
        metric, other = trial.run()
    whole.all_replaced = _moved(base, other), metric
    return whole


def markdown(whole: Whole) -> str:
    """The report as a table for terminals and pages."""
    identity = any(row.identity is not None for row in whole.rows)
    header = ['gate', 'kind', 'mean', 'spread', 'channels', 'positions', 'pictures']
    header += ['identity_scale'] * identity + ['features move by']
    header += [] if whole.value is None else [f'{whole.metric}', 'change']
    lines = []
    for row in whole.rows:
        numbers = (row.mean, row.spread, row.channels, row.positions, row.pictures)
        cells = [row.name, row.kind, *(f'{number:.3f}' for number in numbers)]
        if identity:
            a = row.identity
            cells.append('' if a is None else f'{a[1]:.3f} ({a[0]:.3f} to {a[2]:.3f})')
        cells.append(f'{row.output:.1%}')
        if whole.value is not None:
            cells += [f'{row.metric:.4g}', f'{row.change:+.4g}']
        lines.append(cells)
    output, metric = whole.all_replaced
    cells = ['all replaced', *[''] * (len(header) - 2 - 2 * (whole.value is not None))]
    cells.append(f'{output:.1%}')
    if whole.value is not None and metric is not None:
        cells += [f'{metric:.4g}', f'{metric - whole.value:+.4g}']
    lines.append(cells)
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    rule = ['-' * width for width in widths]
    rows = [header, rule, *lines]
    text = ''.join(
        '| ' + ' | '.join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + ' |\n' for r in rows
    )
    value = '' if whole.value is None else f': {whole.metric} {whole.value:.4g}'
    return f'{whole.images} pictures{value}\n\n{text}'
