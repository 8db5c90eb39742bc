"""Parameters and FLOPs of a config, counted on the meta device: by one rule, and as the papers did.

The honest count has one rule for everything that runs. A FLOP is what the toolboxes' counters call
one: a multiply-accumulate of a convolution or a linear layer (a bias adds one per output), two per
element of a normalisation, one per element of a ReLU, one per input element of a pooling or any
other reduction, and two for a softmax (its two reductions). Other element-wise arithmetic,
interpolation and RoIAlign count nothing.

The authors' count is that of the tool behind a table, see `mmattn.analysis.counters`.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmattn.attention.gate import Gate
from mmattn.hosts.building import build_model
from mmattn.ops import use_impl
from mmattn.papers import config_root, entries, load
from mmattn.papers.alternatives import combine

from .counters import CONVENTIONS, DEFAULTS, ROWS, Convention, Counter, Layer, is_seen, layer_of
from .public_gates import GATES

aten = torch.ops.aten
TWO_AN_ELEMENT = (
    aten.native_batch_norm,
    aten._native_batch_norm_legit_no_training,
    aten.cudnn_batch_norm,
    aten.native_group_norm,
    aten.native_layer_norm,
    aten._softmax,
    aten._log_softmax,
)
ONE_AN_ELEMENT = (
    aten.relu,
    aten.relu_,
    aten.leaky_relu,
    aten.leaky_relu_,
    aten.hardtanh,
    aten.hardtanh_,
    aten.mean,
    aten.sum,
    aten.amax,
    aten.amin,
    aten.max,
    aten.min,
    aten.avg_pool2d,
    aten._adaptive_avg_pool2d,
    aten.max_pool2d_with_indices,
)
SCOPES = {'image-classification': 'mmpretrain', 'semantic-segmentation': 'mmseg'}
# What the second stage sees, whatever the image: the proposals and detections kept at test time.
BOX_ROIS, MASK_ROIS = 1000, 100


# Gate class -> arguments of its function in `public_gates`.
Codes = Mapping[str, Mapping[str, Any]]
# A part of a model: takes and returns the feature maps.
Run = Callable[[Any], Any]


class FlopCounter(TorchDispatchMode):
    """Adds up, in `flops`, the FLOPs (see the module's docstring) of all that runs inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        op = func.overloadpacket
        if op is aten.convolution:
            x, weight, bias, transposed = args[0], args[1], args[2], args[6]
            self.flops += (x if transposed else out).numel() * weight[0].numel()
            self.flops += out.numel() if bias is not None else 0
        elif op is aten.mm or op is aten.bmm:
            self.flops += out.numel() * args[0].shape[-1]
        elif op is aten.addmm:
            self.flops += out.numel() * (args[1].shape[-1] + 1)
        elif op in TWO_AN_ELEMENT:
            self.flops += 2 * args[0].numel()
        elif op in ONE_AN_ELEMENT:
            self.flops += args[0].numel()
        return out


class ReadableLinspace(TorchFunctionMode):
    """Keeps `torch.linspace` on the CPU: mmpretrain's ResNet reads its values (drop-path rates)."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault('device', 'cpu')
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Complexity:
    """Parameters and FLOPs, whole and by part, by the one rule; `as_authors` is their count of
    both, None where they print none."""

    params: int
    flops: int
    parts: dict = field(default_factory=dict)
    as_authors: tuple[int, int] | None = None


def build(config: str | Path | Config) -> nn.Module:
    """The model of a config, or of a config's file, on the meta device, in eval mode."""
    if not isinstance(config, Config):
        config = Config.fromfile(config)
    scope = config.get('default_scope', 'mmengine')
    # Imported here: a module first imported below would make its constants on the meta device.
    if scope != 'mmengine':
        import_module(f'{scope}.registry').MODELS.import_from_location()
    model = config.model.copy()
    if scope == 'mmpretrain' and 'data_preprocessor' in config:
        model.setdefault('data_preprocessor', config.data_preprocessor)
    on_meta: Any = torch.device('meta')  # a context, too
    with DefaultScope.overwrite_default_scope(scope), on_meta, ReadableLinspace():
        built = build_model(dict(model=model, plug=config.get('plug'))).eval()
    return built.to('meta')  # CAT's taps, too, which keep their values


def count(model: nn.Module, convention: Convention, gates: Codes | None = None) -> Complexity:
    """Count a model of the meta device for one image of the convention's size.

    Detectors count their heads on `BOX_ROIS` and `MASK_ROIS` regions (with a last stage that runs
    on regions, if there is one), segmentors their decode head only (the auxiliary head is for
    training). By the one rule all parameters and parts count.

    Args:
        model (nn.Module): An image classifier, a detector or a segmentor.
        convention (Convention): With a counter for the authors' count, too.
        gates (dict, optional): Arguments of the gates' public code; by default the convention's.

    Raises:
        ValueError: for another model.
    """
    gates = convention.gates if gates is None else gates
    parts, layers = {}, {}
    x = torch.empty(1, 3, *convention.size, device='meta')
    counter = convention.counter
    watch: AbstractContextManager[list[Layer]] = nullcontext([])
    if counter is not None:
        watch = _watched(model, gates)
    with use_impl('reference'), torch.no_grad(), watch as seen:
        for name, run in _parts(model):
            with FlopCounter() as flops:
                x = run(x)
            parts[name], layers[name] = flops.flops, seen.copy()
            seen.clear()
    params = sum(p.numel() for p in model.parameters())
    as_authors = None
    if counter is not None:
        as_authors = _as_authors(model, counter, convention, gates, layers)
    return Complexity(params, sum(parts.values()), parts, as_authors)


def _as_authors(
    model: nn.Module,
    counter: Counter,
    convention: Convention,
    gates: Codes,
    layers: Mapping[str, Sequence[Layer]],
) -> tuple[int, int]:
    """Parameters and FLOPs by the convention's counter, of the layers seen in each part."""
    flops = sum(
        counter.flops(layer)
        for part, seen in layers.items()
        if convention.parts is None or part in convention.parts
        for layer in seen
    )
    counted = [p for p in model.parameters() if p.requires_grad or not counter.trainable]
    return sum(p.numel() for p in counted) + _params_unlike_ours(model, gates, counted), flops


def _params_unlike_ours(model: nn.Module, gates: Codes, counted: Iterable[nn.Parameter]) -> int:
    """Parameters that the public code of the gates has more than our gates."""
    known = {id(p) for p in counted}
    more = 0
    for gate in model.modules():
        if isinstance(gate, Gate) and all(id(p) in known for p in gate.parameters()):
            layers = public_layers(gate, (gate.in_channels, 1, 1), gates)
            more += sum(layer.params for layer in layers)
            more -= sum(p.numel() for p in gate.parameters())
    return more


def public_layers(gate: Gate, shape: tuple[int, int, int], gates: Codes) -> list[Layer]:
    """The layers of a gate's public code for one input of the shape (C, H, W)."""
    name = type(gate).__name__
    layers_of: Any = GATES[name]  # which takes a gate of this class
    return layers_of(gate, *shape, **gates.get(name, {}))


@contextmanager
def _watched(model: nn.Module, gates: Codes) -> Iterator[list[Layer]]:
    """Yields a list that fills with the layers that a counter of modules sees while model runs."""
    layers, calls, handles = [], Tally(), []
    backbone = type(getattr(model, 'backbone', None)).__name__

    def listen(name: str, module: nn.Module) -> None:
        def heard(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] += 1
            if isinstance(module, Gate):
                _, c, h, w = inputs[0].shape
                layers.extend(public_layers(module, (c, h, w), gates))
            elif is_seen(backbone, f'{name}#{calls[name]}'):
                layer = layer_of(module, inputs[0], output)
                layers.extend([layer] if layer else [])

        handles.append(module.register_forward_hook(heard))

    def visit(name: str, module: nn.Module) -> None:
        children = [] if isinstance(module, Gate) else list(module.named_children())
        if not children:
            listen(name, module)
        for child, submodule in children:
            visit(f'{name}.{child}', submodule)

    for name, module in model.named_children():
        visit(name, module)
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def _parts(model: Any) -> Iterator[tuple[str, Run]]:
    """(name, function) in running order; each takes and returns the feature maps."""

    def on_rois(heads: Any, extractor: Any, head: Any, rois: int) -> Run:
        shape = (rois, extractor.out_channels, *extractor.roi_layers[0].output_size)

        def run(features: Any) -> Any:
            x = torch.empty(shape, device='meta')
            head(heads.shared_head(x) if heads.with_shared_head else x)
            return features

        return run

    def aside(head: Any) -> Run:

        def run(features: Any) -> Any:
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
        yield 'bbox_head', on_rois(heads, heads.bbox_roi_extractor, heads.bbox_head, BOX_ROIS)
        if heads.with_mask:
            yield 'mask_head', on_rois(heads, heads.mask_roi_extractor, heads.mask_head, MASK_ROIS)
    elif hasattr(model, 'bbox_head'):
        yield 'bbox_head', aside(model.bbox_head)
    else:
        yield 'head', aside(model.head)


@cache
def measure(
    config: str, convention: Convention | None = None, alternatives: tuple[str, ...] = ()
) -> tuple[Complexity, Convention]:
    """`count` of a config file; by the authors' count, of the model with the convention's changes.

    Args:
        config (str): The file.
        convention (Convention, optional): By default that of its codebase, without a counter.
        alternatives (tuple[str, ...]): Of the row that the file is.

    Returns:
        tuple[Complexity, Convention]

    Raises:
        AlternativeError: for alternatives that the config does not have.
    """
    cfg = combine(config, alternatives) if alternatives else Config.fromfile(config)
    convention = convention or DEFAULTS.get(cfg.get('default_scope'), Convention())
    gates = next((gates for row, gates in ROWS.items() if config.endswith(row)), None)
    counted = count(build(cfg), convention, gates)
    if convention.changes:
        cfg.merge_from_dict(convention.changes)
        changed = count(build(cfg), convention, gates)
        counted = replace(counted, as_authors=changed.as_authors)
    return counted, convention


@dataclass(frozen=True)
class Row:
    """One printed model. Parameters in millions, FLOPs in billions, rounded to two digits.

    Args:
        params, flops (float): By the one rule, in 10^6 and 10^9.
        counted_params, counted_flops (float | None): As the authors counted, in their units.
        paper_params, paper_flops (float | None): As printed; None where the paper prints nothing.
        contradicts (dict): Metric -> why its number cannot be right.
    """

    paper: str
    table: int
    group: str
    method: str
    config: str
    params: float
    counted_params: float | None
    paper_params: float | None
    flops: float
    counted_flops: float | None
    paper_flops: float | None
    contradicts: dict = field(default_factory=dict)

    @property
    def params_agree(self) -> bool:
        """Whether the paper's number is the authors' count, to the printed digit."""
        return self.paper_params == self.counted_params

    @property
    def flops_agree(self) -> bool:
        return self.paper_flops == self.counted_flops


def convention_of(paper: str, table: int) -> Convention:
    """The `Convention` in which `table_rows` counts; ValueError for an unknown paper or table."""
    tables = load(paper)
    if table not in tables:
        raise ValueError(f'{paper} has the tables {sorted(tables)}, got {table!r}')
    scope = SCOPES.get(tables[table]['task'], 'mmdet')
    return CONVENTIONS.get((paper, table), DEFAULTS[scope])


def table_rows(paper: str, table: int) -> list[Row]:
    """The `Row`s of a paper's table, in its convention.

    Raises:
        ValueError: for an unknown paper or table.
    """
    convention = convention_of(paper, table)
    rows = []
    for entry in entries(paper, table):
        counted, _ = measure(str(config_root() / entry.config), convention)
        params, flops = counted.as_authors or (None, None)
        rows.append(
            Row(
                paper,
                table,
                entry.group,
                entry.name,
                entry.config,
                round(counted.params / 1e6, 2),
                None if params is None else round(params / convention.mega, 2),
                entry.values.get('params'),
                round(counted.flops / 1e9, 2),
                None if flops is None else round(flops / convention.giga, 2),
                entry.values.get('gflops', entry.values.get('gmac')),
                entry.contradicts,
            )
        )
    return rows
