"""What a gate costs: time and memory of single modules, and of networks with and without plugins.

Times are medians over rounds; in a round every candidate runs once, so that a machine that slows
down slows all of them, and a ratio is the median of the rounds' ratios.
"""

import copy
import ctypes
import importlib
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn

import mmattn.attention as attention

GATES = ('SE', 'ECA', 'CBAM', 'CoordAttention', 'DRTAM', 'CAT')
IMPLS = ('reference', 'fast')
AGAINST = ('plain', 'timm', 'compiled', 'identity')
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)
LAYOUTS = dict(contiguous=torch.contiguous_format, channels_last=torch.channels_last)
# Output of the stages of ResNet-50, where both papers gate it.
RESNET50 = ((256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7))
# MobileNetV2: the expanded maps (DRTAM's place) and the block outputs (CAT's).
MOBILENETV2 = (
    (32, 112, 112),
    (96, 56, 56),
    (144, 56, 56),
    (192, 28, 28),
    (384, 14, 14),
    (576, 14, 14),
    (960, 7, 7),
    (16, 112, 112),
    (24, 56, 56),
    (32, 28, 28),
    (64, 14, 14),
    (96, 14, 14),
    (160, 7, 7),
    (320, 7, 7),
)
# Units of |x| that have to move: statistics (read x), apply (read x, write y), reductions (read x
# and dy), dx (read dy, write dx). Where the statistics are no mere sums of x, dx reads x once more;
# CBAM has a second pool, of the map its first has gated.
LIMIT = dict(mul=4, SE=7, ECA=7, CBAM=9, CoordAttention=7, DRTAM=7, CAT=8)


Step = Callable[[], Any]


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


CLOCKS = dict(wall=time.perf_counter, cpu=time.process_time)


def keep_memory() -> None:
    """Keep the memory that a step frees with the process, for the next step.

    glibc gives large blocks back to the system or not by rules of its own, and taking them again
    page by page can cost more than a gate does. What is measured here is the steady state, as with
    the allocators that PyTorch recommends on CPUs. Elsewhere than on glibc this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter, value in ((-3, 32 << 20), (-1, 2**31 - 1)):  # M_MMAP_, M_TRIM_THRESHOLD
        mallopt(parameter, value)


def timings(
    steps: Mapping[str, Step],
    device: torch.device,
    rounds: int = 15,
    seconds: float = 0.01,
    clock: str = 'wall',
) -> dict[str, list[float]]:
    """Milliseconds of each function of `steps` (name -> function): a list, one value a round.

    `clock` 'cpu' counts processor time instead: on one thread it tells steps apart on a machine
    that others keep busy.
    """
    now, repeats = CLOCKS[clock], {}
    for name, step in steps.items():
        step()  # compiles, fills caches
        _synchronize(device)
        start = now()
        step()
        _synchronize(device)
        repeats[name] = max(1, min(100, round(seconds / (now() - start))))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            _synchronize(device)
            start = now()
            for _ in range(repeats[name]):
                step()
            _synchronize(device)
            times[name].append((now() - start) / repeats[name] * 1e3)
    return times


def ratio(times: Mapping[str, Sequence[float]], of: str, to: str) -> float:
    """The median over the rounds of times[of] / times[to]."""
    return statistics.median(a / b for a, b in zip(times[of], times[to], strict=True))


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for the backward of `module(x)`, without parameters and buffers."""
    kept = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = module(x)
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    del y
    return sum(t.untyped_storage().nbytes() for ptr, t in kept.items() if ptr not in own)


class Mul(nn.Module):
    """The least any gate can do."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.5


class PlainCAT(attention.CAT):
    """CAT's equations at their plainest: an entropy is a softmax, a logarithm, a product and a sum,
    and every channel is filtered as an image of its own, (N C, 1, H, W), by one k x 1 or k x k
    kernel.

    The same values as the reference, which filters one axis at a time, the channels in groups.
    """

    def _pool(
        self, x: Tensor, channel: bool = True, spatial: bool = True
    ) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        images, taps = x.reshape(-1, 1, *x.shape[2:]), self.taps
        found: list[tuple[Tensor | None, ...]] = []
        for wanted, dims, kernel in (
            (channel, (2, 3), taps[:, None]),
            (spatial, (1,), taps[:, None] * taps),
        ):
            if not wanted:
                found.append((None,) * 3)
                continue
            smooth = F.conv2d(images, kernel[None, None], padding='same').view_as(x)
            p = x.flatten(2).softmax(2).view_as(x) if len(dims) == 2 else x.softmax(1)
            stats = dict(avg=x.mean(dims), max=smooth.amax(dims), ent=-(p * p.log()).sum(dims))
            found.append(tuple(stats[pool] if pool in self.pools else None for pool in stats))
        of_channels, of_positions = found
        return of_channels, of_positions


TIMM = ('SE', 'ECA', 'CBAM', 'CoordAttention')


def _timm(gate: str, channels: int) -> nn.Module:
    """timm's module of that gate, one of `TIMM`: the best-known public eager code."""
    from timm.layers.cbam import CbamModule
    from timm.layers.coord_attn import CoordAttn
    from timm.layers.eca import EcaModule
    from timm.layers.squeeze_excite import SEModule

    made: dict[str, Callable[[], nn.Module]] = dict(
        SE=lambda: SEModule(channels, rd_ratio=1 / 16, rd_divisor=1),
        ECA=lambda: EcaModule(channels),
        CBAM=lambda: CbamModule(channels, rd_ratio=1 / 16, rd_divisor=1),
        CoordAttention=lambda: CoordAttn(channels, rd_ratio=1 / 32, rd_divisor=1),
    )
    return made[gate]()


def _compile_often() -> None:
    """All gates share the code of one forward, which Dynamo would compile eight times at most."""
    config = importlib.import_module('torch._dynamo.config')
    limit = 'recompile_limit' if hasattr(config, 'recompile_limit') else 'cache_size_limit'
    setattr(config, limit, 128)


def _compiled(module: nn.Module) -> Any:  # a module, too
    # Each shape alone: sizes left open are slower, and Inductor fails at some.
    return torch.compile(module, fullgraph=True, dynamic=False)


def candidates(
    gates: Iterable[str], channels: int, against: Sequence[str] = (), depth: int = 1
) -> dict[str, nn.Module]:
    """name -> module: `mul`, each gate in both implementations, and public code where asked for.

    With a `depth`, so many of them one after the other.
    """

    def chain(make: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
        made = [make(*args, **kwargs) for _ in range(depth)]
        return made[0] if depth == 1 else nn.Sequential(*made)

    found = {'mul': chain(Mul)}
    if 'compiled' in against:
        _compile_often()
        if depth == 1:  # of a chain, Inductor makes one product
            found['mul compiled'] = _compiled(Mul())  # what torch.compile itself costs
    for gate in gates:
        of = getattr(attention, gate)
        for impl in IMPLS:
            found[f'{gate} {impl}'] = chain(of, channels, impl=impl)
        if 'identity' in against:
            found[f'{gate} identity'] = chain(_with_identity, gate, channels)
        if 'compiled' in against:  # as torch.compile runs the kernels, and the equations
            for impl, name in (('fast', 'compiled'), ('reference', 'compiled-reference')):
                found[f'{gate} {name}'] = _compiled(chain(of, channels, impl=impl))
        if 'plain' in against and gate == 'CAT':
            found['CAT plain'] = chain(PlainCAT, channels, impl='reference')
        if 'timm' in against and gate in TIMM:
            found[f'{gate} timm'] = chain(_timm, gate, channels)
    return found


def _with_identity(gate: str, channels: int) -> nn.Module:
    module = getattr(attention, gate)(channels, impl='fast')
    module.identity_scale = nn.Parameter(torch.zeros(channels))
    return module


def modules(
    shapes: Iterable[tuple[int, int, int, int]],
    gates: Sequence[str] = GATES,
    dtypes: Sequence[str] = ('fp32',),
    layouts: Sequence[str] = ('contiguous',),
    device: str | torch.device = 'cpu',
    rounds: int = 15,
    against: Sequence[str] = (),
    backward: bool = True,
    clock: str = 'wall',
    depth: int = 1,
) -> list[dict[str, Any]]:
    """Time and saved memory of gates on maps of these (N, C, H, W) shapes.

    Of `depth` gates one after the other, time and memory are those of one: what a compiled graph
    costs, whatever is in it, is divided by their number.

    Returns:
        list[dict]: one row for `mul` and for each gate and implementation, with `ms`, `mul` (times
        the time of `mul`), `speedup` (over the gate's reference), `fast` (of code `against` which
        ours is measured: how many times faster ours is), `saved` (units of x), `limit`
        (the time of `mul` scaled to the gate's least traffic, as a share of its time; training
        only).
    """
    device, rows = torch.device(device), []
    for shape in shapes:
        for dtype in dtypes:
            for layout in layouts:
                torch.manual_seed(0)
                x = torch.randn(shape, device=device).to(DTYPES[dtype])
                x = x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_(backward)
                dy = torch.randn_like(x)
                found = candidates(gates, shape[1], against, depth)
                found = {name: module.to(device).train(backward) for name, module in found.items()}
                if DTYPES[dtype] != torch.float32:  # as under autocast: ours keep fp32 parameters
                    for name in [n for n in found if n.endswith('timm')]:
                        found[name].to(DTYPES[dtype])
                times = timings(
                    {name: _step(module, x, dy, backward) for name, module in found.items()},
                    device,
                    rounds,
                    clock=clock,
                )
                for name, module in found.items():
                    gate, _, impl = name.partition(' ')
                    row: dict[str, Any] = dict(
                        gate=gate,
                        impl=impl,
                        shape='x'.join(map(str, shape)),
                        dtype=dtype,
                        layout=layout,
                        ms=statistics.median(times[name]) / depth,
                        mul=ratio(times, name, 'mul'),
                    )
                    if impl and gate != 'mul':
                        row['speedup'] = ratio(times, f'{gate} reference', name)
                    if gate != 'mul' and impl not in IMPLS:
                        row['fast'] = ratio(times, name, f'{gate} fast')
                    if backward:
                        unit = depth * x.numel() * x.element_size()
                        row['saved'] = saved_bytes(module, x) / unit
                        row['limit'] = LIMIT[gate] / LIMIT['mul'] / row['mul']
                    rows.append(row)
    return rows


def _step(module: nn.Module, x: Tensor, dy: Tensor, backward: bool) -> Step:
    leaves = [x, *module.parameters()]

    def train() -> None:
        torch.autograd.grad(module(x), leaves, dy)

    def infer() -> None:
        with torch.no_grad():
            module(x)

    return train if backward else infer


def bare(config: Config) -> Config:
    """The config's model without its plugins."""
    config = copy.deepcopy(config)

    def strip(node: Any) -> None:
        if isinstance(node, dict):
            node.pop('plugins', None)
            node = list(node.values())
        if isinstance(node, (list, tuple)):
            for child in node:
                strip(child)

    strip(config.model)
    config.pop('plug', None)
    return config


def _samples(
    scope: str, count: int, size: tuple[int, int], classes: int, device: torch.device
) -> list[Any]:
    """Made-up targets, in the form of the codebase."""
    if scope == 'mmpretrain':
        from mmpretrain.structures import DataSample

        return [DataSample().set_gt_label(i % classes).to(device) for i in range(count)]
    if scope == 'mmseg':
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        meta = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
        mask = torch.zeros(1, *size, dtype=torch.long, device=device)
        return [SegDataSample(gt_sem_seg=PixelData(data=mask), metainfo=meta) for _ in range(count)]
    if scope == 'mmdet':
        import numpy as np
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks
        from mmengine.structures import InstanceData

        h, w = size
        meta = dict(
            img_shape=size,
            ori_shape=size,
            pad_shape=size,
            batch_input_shape=size,
            scale_factor=(1.0, 1.0),
        )
        boxes = torch.tensor([[0, 0, w / 2, h / 2], [w / 4, h / 4, w, h]], device=device)
        found = []
        for _ in range(count):
            sample = DetDataSample(metainfo=meta)
            sample.gt_instances = InstanceData(
                bboxes=boxes,
                labels=torch.zeros(2, dtype=torch.long, device=device),
                masks=BitmapMasks(np.ones((2, h, w), np.uint8), h, w),
            )
            sample.ignored_instances = InstanceData(
                bboxes=boxes[:0], labels=torch.zeros(0, dtype=torch.long, device=device)
            )
            found.append(sample)
        return found
    raise ValueError(f'default_scope must be mmpretrain, mmdet or mmseg, got {scope!r}')


def network(
    config: Config,
    batch: int,
    size: tuple[int, int],
    device: str | torch.device = 'cpu',
    rounds: int = 5,
    amp: str | None = None,
    channels_last: bool = False,
) -> list[dict[str, Any]]:
    """Throughput and peak memory of a config's model, with its plugins and without.

    Args:
        config (mmengine.Config): a whole config, of mmpretrain, mmdet or mmseg.
        batch (int): images a step.
        size (tuple[int]): height and width of the images; made-up images and targets.
        amp (str, optional): autocast to 'bf16' or 'fp16'.

    Returns:
        list[dict]: rows `plugins` and `bare` of each mode, with `images_per_s`, `share` (of the
        bare network's throughput), and on CUDA `peak` (bytes) and `peak_share`.
    """
    from mmengine.registry import init_default_scope

    from mmattn.hosts.building import build_model

    device, scope = torch.device(device), config.get('default_scope')
    init_default_scope(scope)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.randn(batch, 3, *size, device=device).contiguous(memory_format=layout)
    # Not spelt out below: to the types of PyTorch 2.8, modules have no memory format.
    place: dict[str, Any] = dict(device=device, memory_format=layout)
    samples = _samples(scope, batch, size, 2, device)
    models = {}
    for name, whole in (('bare', bare(config)), ('plugins', config)):
        cfg = copy.deepcopy(whole.model)
        cfg.pop('data_preprocessor', None)
        for part in (cfg, cfg.get('backbone', {})):
            part.pop('init_cfg', None)  # weights do not change the time
        torch.manual_seed(0)
        model = build_model(dict(model=cfg, plug=whole.get('plug')))
        models[name] = model.to(**place)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, DTYPES[amp or 'bf16'], enabled=amp is not None)

    def train(model: nn.Module) -> Step:
        def step() -> None:
            model.train()
            with autocast():
                losses = model(images, samples, mode='loss')
            total: Any = sum(
                v.sum() if isinstance(v, torch.Tensor) else sum(v).sum()
                for k, v in losses.items()
                if 'loss' in k
            )
            model.zero_grad()
            total.backward()

        return step

    def infer(model: nn.Module) -> Step:
        def step() -> None:
            model.eval()
            with torch.no_grad(), autocast():
                model(images, samples, mode='tensor')

        return step

    rows = []
    for mode, make in (('training', train), ('inference', infer)):
        steps = {name: make(model) for name, model in models.items()}
        times = timings(steps, device, rounds, seconds=0)
        peak = {}
        if device.type == 'cuda':
            for name, step in steps.items():
                torch.cuda.reset_peak_memory_stats(device)
                step()
                peak[name] = torch.cuda.max_memory_allocated(device)
        for name in steps:
            row = dict(
                mode=mode,
                network=name,
                batch=batch,
                size='x'.join(map(str, size)),
                images_per_s=batch / statistics.median(times[name]) * 1e3,
                share=ratio(times, 'bare', name),
            )
            if peak:
                row.update(peak=peak[name], peak_share=peak[name] / peak['bare'])
            rows.append(row)
    return rows


def machine(device: str | torch.device = 'cpu') -> dict[str, str | int | None]:
    """What the figures depend on."""
    info: dict[str, str | int | None] = dict(
        torch=torch.__version__, threads=torch.get_num_threads(), device='cpu', name=_processor()
    )
    if torch.device(device).type == 'cuda':
        info.update(device='cuda', name=torch.cuda.get_device_name(device), cuda=torch.version.cuda)
    return info


def _processor() -> str:
    try:
        with open('/proc/cpuinfo') as f:
            return next(line.split(':')[1].strip() for line in f if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


_FORMATS = dict(
    ms='{:.3f}',
    before='{:.3f}',
    after='{:.3f}',
    ratio='{:.2f}',
    mul='{:.2f}',
    speedup='{:.2f}',
    fast='{:.2f}',
    saved='{:.2f}',
    limit='{:.0%}',
    images_per_s='{:.2f}',
    share='{:.3f}',
    peak_share='{:.3f}',
    peak='{:.3g}',
)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows (a list of dicts) as a Markdown table; what a row lacks stays empty."""
    keys = list(dict.fromkeys(k for row in rows for k in row))
    lines = ['| ' + ' | '.join(keys) + ' |', '|' + ' --- |' * len(keys)]
    for row in rows:
        cells = [_FORMATS.get(k, '{}').format(row[k]) if k in row else '' for k in keys]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)
