"""Parameters and FLOPs of a config, counted on the meta device in the papers' own conventions.

A FLOP here is what the toolboxes' counters call one: a multiply-accumulate of a convolution or a
linear layer (a bias adds one per output), two per element of a normalisation, one per element of a
ReLU, one per input element of a pooling or any other reduction, and two for a softmax (its two
reductions). Other element-wise arithmetic, interpolation and RoIAlign count nothing. The rule is
the same for the network and for every gate in it; a table whose tool saw less says so
(`Convention`).
"""

import csv
import io
import json
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import import_module

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmattn.ops import use_impl
from mmattn.papers import config_root, entries, load

aten = torch.ops.aten
NORMS = (
    aten.native_batch_norm,
    aten._native_batch_norm_legit_no_training,
    aten.cudnn_batch_norm,
    aten.native_group_norm,
    aten.native_layer_norm,
)
ONE_AN_ELEMENT = (
    aten.relu,
    aten.relu_,
    aten.leaky_relu,
    aten.leaky_relu_,
    aten.hardtanh,
    aten.hardtanh_,
    aten.mean,
    aten.amax,
    aten.amin,
    aten.max,
    aten.min,
    aten.avg_pool2d,
    aten._adaptive_avg_pool2d,
    aten.max_pool2d_with_indices,
)


@dataclass(frozen=True)
class Convention:
    """How a table counts.

    Args:
        mega (int): Parameters in its million.
        giga (int): FLOPs in its billion.
        size (tuple): Input (H, W).
        skip (tuple): Prefixes of the parameters it leaves out.
        norms (bool): Whether the FLOPs of normalisation are in.
        entropies (bool): Whether those of entropies and of filters without weights are in.
    """

    mega: int = 10**6
    giga: int = 10**9
    size: tuple = (224, 224)
    skip: tuple = ()
    norms: bool = True
    entropies: bool = True

    def __str__(self):
        units = {10**6: '10^6', 2**20: '2^20'}[self.mega], {10**9: '10^9', 2**30: '2^30'}[self.giga]
        text = f'M = {units[0]}, G = {units[1]}, input {self.size[0]}x{self.size[1]}'
        text += f', parameters without {", ".join(self.skip)}' if self.skip else ''
        text += '' if self.norms else ', FLOPs without normalisation'
        return text + ('' if self.entropies else ', FLOPs without entropies and fixed filters')


# Each from the bare rows of its table: there alone the units and sizes can be told.
CONVENTIONS = {
    # 224x224 through networks with CIFAR's stride-1 stem. CAT's rows exceed CBAM's by an MLP or
    # two: its entropies and Gaussian filters, being no layers, were not seen.
    ('cat', 3): Convention(entropies=False),
    ('cat', 4): Convention(mega=2**20, giga=2**30, entropies=False),
    ('drtam', 1): Convention(),
    ('drtam', 2): Convention(),
    ('drtam', 3): Convention(),
    ('drtam', 4): Convention(),
    # Parameters of the frozen first stage are left out (those of the frozen stem are not).
    ('drtam', 5): Convention(skip=('backbone.layer1.',)),
    # The toolbox's counter does not know SyncBN, which the FCNs have throughout.
    ('drtam', 7): Convention(size=(512, 512), norms=False),
}
# For tables without such columns, and configs in no table.
DEFAULTS = {
    'mmpretrain': Convention(),
    'mmdet': Convention(size=(800, 1344)),
    'mmseg': Convention(size=(512, 512)),
}
SCOPES = {'image-classification': 'mmpretrain', 'semantic-segmentation': 'mmseg'}
STYLES = ('markdown', 'csv', 'json')
# What the second stage sees, whatever the image: the proposals and detections kept at test time.
BOX_ROIS, MASK_ROIS = 1000, 100


class FlopCounter(TorchDispatchMode):
    """Adds up, in `flops`, the FLOPs (see the module's docstring) of all that runs inside it.

    Args:
        norms (bool): Count normalisation.
        entropies (bool): Count softmaxes, sums, and convolutions with one of `fixed`.
        fixed (iterable[Tensor]): Weights that are no parameters.
    """

    def __init__(self, norms=True, entropies=True, fixed=()):
        super().__init__()
        self.norms = norms
        self.entropies = entropies
        self.fixed = {tensor.untyped_storage()._cdata for tensor in fixed}
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        op = func.overloadpacket
        if op is aten.convolution:
            x, weight, bias, transposed = *args[:3], args[6]
            if self.entropies or weight.untyped_storage()._cdata not in self.fixed:
                self.flops += (x if transposed else out).numel() * weight[0].numel()
                self.flops += out.numel() if bias is not None else 0
        elif op is aten.mm or op is aten.bmm:
            self.flops += out.numel() * args[0].shape[-1]
        elif op is aten.addmm:
            self.flops += out.numel() * (args[1].shape[-1] + 1)
        elif op in NORMS:
            self.flops += 2 * args[0].numel() * self.norms
        elif op is aten._softmax or op is aten._log_softmax:
            self.flops += 2 * args[0].numel() * self.entropies
        elif op is aten.sum:
            self.flops += args[0].numel() * self.entropies
        elif op in ONE_AN_ELEMENT:
            self.flops += args[0].numel()
        return out


class ReadableLinspace(TorchFunctionMode):
    """Keeps `torch.linspace` on the CPU: mmpretrain's ResNet reads its values (drop-path rates)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault('device', 'cpu')
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Complexity:
    """Parameters (those left out by the convention not counted) and FLOPs, whole and by part."""

    params: int
    flops: int
    parts: dict = field(default_factory=dict)


def build(config):
    """The config's model on the meta device, in eval mode; `config` is a path or a `Config`."""
    if not isinstance(config, Config):
        config = Config.fromfile(config)
    scope = config.get('default_scope', 'mmengine')
    # Imported here: a module first imported below would make its constants on the meta device.
    if scope != 'mmengine':
        import_module(f'{scope}.registry').MODELS.import_from_location()
    model = config.model.copy()
    if scope == 'mmpretrain' and 'data_preprocessor' in config:
        model.setdefault('data_preprocessor', config.data_preprocessor)
    with DefaultScope.overwrite_default_scope(scope), torch.device('meta'), ReadableLinspace():
        built = MODELS.build(model).eval()
    return built.to('meta')  # CAT's taps, too, which keep their values


def count(model, convention):
    """Count a model of the meta device for one image of the convention's size.

    Detectors count their heads on `BOX_ROIS` and `MASK_ROIS` regions, segmentors their decode head
    only (the auxiliary head is for training). All parameters count but the convention's `skip`.

    Raises:
        ValueError: for a model that is not an image classifier, a detector or a segmentor.
    """
    counts = {}
    with use_impl('reference'), torch.no_grad():
        x = torch.empty(1, 3, *convention.size, device='meta')
        for name, run in _parts(model):
            counter = FlopCounter(convention.norms, convention.entropies, model.buffers())
            with counter:
                x = run(x)
            counts[name] = counter.flops
    named = model.named_parameters()
    params = sum(p.numel() for name, p in named if not name.startswith(convention.skip))
    return Complexity(params, sum(counts.values()), counts)


def _parts(model):
    """(name, function) in running order; each takes and returns the feature maps."""

    def on_rois(extractor, head, rois):
        shape = (rois, extractor.out_channels, *extractor.roi_layers[0].output_size)

        def run(features):
            head(torch.empty(shape, device='meta'))
            return features

        return run

    def aside(head):

        def run(features):
            head(features)
            return features

        return run

    if not any(hasattr(model, name) for name in ('decode_head', 'rpn_head', 'bbox_head', 'head')):
        raise ValueError(f'{type(model).__name__} is no image classifier, detector or segmentor')
    yield 'backbone', model.backbone
    if getattr(model, 'with_neck', False):
        yield 'neck', model.neck
    if hasattr(model, 'decode_head'):
        yield 'decode_head', aside(model.decode_head)
    elif hasattr(model, 'rpn_head'):
        yield 'rpn_head', aside(model.rpn_head)
        heads = model.roi_head
        yield 'bbox_head', on_rois(heads.bbox_roi_extractor, heads.bbox_head, BOX_ROIS)
        if heads.with_mask:
            yield 'mask_head', on_rois(heads.mask_roi_extractor, heads.mask_head, MASK_ROIS)
    elif hasattr(model, 'bbox_head'):
        yield 'bbox_head', aside(model.bbox_head)
    else:
        yield 'head', aside(model.head)


@cache
def measure(config, convention=None):
    """`count` of a config file, in the convention given or the default one of its codebase.

    Returns:
        tuple[Complexity, Convention]
    """
    config = Config.fromfile(config)
    convention = convention or DEFAULTS.get(config.get('default_scope'), Convention())
    return count(build(config), convention), convention


@dataclass(frozen=True)
class Row:
    """One printed model, computed and printed side by side; None where the paper prints nothing."""

    paper: str
    table: int
    group: str
    method: str
    config: str
    params: float
    paper_params: float | None
    flops: float
    paper_flops: float | None
    contradicts: dict = field(default_factory=dict)

    @property
    def params_diff(self):
        return None if self.paper_params is None else round(self.params - self.paper_params, 2)

    @property
    def flops_diff(self):
        return None if self.paper_flops is None else round(self.flops - self.paper_flops, 2)

    @property
    def params_agree(self):
        """Whether the paper's number is ours, rounded to 0.01 M, give or take the last digit."""
        return self.paper_params is None or abs(self.params_diff) < 0.0101

    @property
    def flops_agree(self):
        """Whether the paper's number is ours within 1 %, or within its last digit."""
        return self.paper_flops is None or (
            abs(self.flops_diff) < 0.0101
            or abs(self.flops - self.paper_flops) <= 0.01 * self.paper_flops
        )


def convention_of(paper, table):
    """The `Convention` in which `table_rows` counts; ValueError for an unknown paper or table."""
    tables = load(paper)
    if table not in tables:
        raise ValueError(f'{paper} has the tables {sorted(tables)}, got {table!r}')
    scope = SCOPES.get(tables[table]['task'], 'mmdet')
    return CONVENTIONS.get((paper, table), DEFAULTS[scope])


def table_rows(paper, table):
    """The `Row`s of a paper's table, in its convention.

    Raises:
        ValueError: for an unknown paper or table.
    """
    convention = convention_of(paper, table)
    rows = []
    for entry in entries(paper, table):
        counted, _ = measure(str(config_root() / entry.config), convention)
        rows.append(
            Row(
                paper,
                table,
                entry.group,
                entry.name,
                entry.config,
                round(counted.params / convention.mega, 2),
                entry.values.get('params'),
                round(counted.flops / convention.giga, 2),
                entry.values.get('gflops', entry.values.get('gmac')),
                entry.contradicts,
            )
        )
    return rows


def render(rows, style='markdown'):
    """`rows` of `table_rows` as 'markdown', 'csv' or 'json' text.

    Raises:
        ValueError: for another style.
    """
    if style not in STYLES:
        raise ValueError(f'style must be one of {STYLES}, got {style!r}')
    if style == 'markdown':
        return _markdown(rows)
    records = [
        {**asdict(row), 'params_diff': row.params_diff, 'flops_diff': row.flops_diff}
        for row in rows
    ]
    if style == 'json':
        return json.dumps(records, indent=2) + '\n'
    out = io.StringIO()
    columns = [name for name in records[0] if name != 'contradicts']
    writer = csv.DictWriter(out, columns, extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _markdown(rows):
    lines = [
        '| Network | Method | Params (M) | paper | diff | FLOPs (G) | paper | diff |',
        '| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |',
    ]
    for row in rows:
        cells = [
            row.group,
            row.method,
            *_cells(row.params, row.paper_params, row.params_diff),
            *_cells(row.flops, row.paper_flops, row.flops_diff),
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _cells(ours, paper, diff):
    return (
        f'{ours:.2f}',
        '' if paper is None else f'{paper:.2f}',
        '' if diff is None else f'{diff:+.2f}',
    )


def render_config(config, counted, convention, style='markdown'):
    """A config's `Complexity`, whole and by part, as 'markdown', 'csv' or 'json' text.

    Raises:
        ValueError: for another style.
    """
    if style not in STYLES:
        raise ValueError(f'style must be one of {STYLES}, got {style!r}')
    if style == 'json':
        return (
            json.dumps(
                {'config': str(config), 'size': convention.size, **asdict(counted)}, indent=2
            )
            + '\n'
        )
    flops = {**counted.parts, 'total': counted.flops}
    if style == 'csv':
        params = {'total': counted.params}
        return 'part,params,flops\n' + ''.join(
            f'{part},{params.get(part, "")},{n}\n' for part, n in flops.items()
        )
    lines = [
        f'{config}: {counted.params / convention.mega:.3f} M parameters ({convention})',
        '',
        '| Part | FLOPs (G) |',
        '| --- | ---: |',
    ]
    lines += [f'| {part} | {n / convention.giga:.3f} |' for part, n in flops.items()]
    return '\n'.join(lines) + '\n'


def contradictions():
    """The numbers in which the papers contradict themselves, with the reasons, as Markdown."""
    lines = [
        '| Table | Row | Column | paper | ours | Reason |',
        '| --- | --- | --- | ---: | ---: | --- |',
    ]
    for paper, table in CONVENTIONS:
        if not any(entry.contradicts for entry in entries(paper, table)):
            continue
        for row in table_rows(paper, table):
            for metric, reason in row.contradicts.items():
                printed, ours = (
                    (row.paper_params, row.params)
                    if metric == 'params'
                    else (row.paper_flops, row.flops)
                )
                column = {'params': 'Params (M)', 'gflops': 'FLOPs (G)', 'gmac': 'GMac'}[metric]
                lines.append(
                    f'| {paper.upper()} {table} | {row.group} {row.method} | {column} '
                    f'| {printed:.2f} | {ours:.2f} | {reason} |'
                )
    return '\n'.join(lines) + '\n'
