"""A second of arithmetic with known answers, for `mmattn.doctor`.

Each test returns what it has found as a line of text, and raises where that is wrong.
"""

import functools
import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mmattn import attention

# What rounding may do. float32 in another order of summation stays below 1e-4; the convolutions
# among the equations may round to TF32 on a GPU. A wrong kernel is off by a multiple.
TOLERANCE = dict(cpu=1e-3, cuda=1e-2)
# Two boxes with 81 of 119 in common, and one apart: the second goes.
BOXES = ((0.0, 0.0, 10.0, 10.0), (1.0, 1.0, 11.0, 11.0), (20.0, 20.0, 30.0, 30.0))
SCORES = (0.9, 0.8, 0.7)
KEPT = [0, 2]


class SelfTestError(RuntimeError):
    """A wrong answer, and what mends it."""

    def __init__(self, text: str, mend: str = 'report this page, please') -> None:
        super().__init__(text)
        self.mend = mend


def _step(gate: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and gradients of a training step."""
    x = x.clone().requires_grad_()
    gate.zero_grad()
    y = gate(x)
    (y * torch.linspace(0.5, 1.5, y.numel(), device=y.device).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in gate.parameters() if p.grad is not None)]


def gate_difference(name: str, device: str) -> float:
    """The largest difference of a gate's kernels from its equations, output and gradients.

    Each tensor counts relative to its own largest value, or to 1 where that is less.
    """
    generator = torch.Generator().manual_seed(0)
    # Odd sizes, and so many elements that no op leaves them to PyTorch.
    x = torch.randn(2, 16, 61, 69, generator=generator).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gate = getattr(attention, name)(16).to(device)
    state = {key: value.clone() for key, value in gate.state_dict().items()}
    found = []
    for impl in ('reference', 'fast'):
        gate.load_state_dict(state)  # running statistics too
        gate.impl = impl
        found.append(_step(gate, x))
    largest = 0.0
    for equation, kernel in zip(*found, strict=True):
        if not equation.isfinite().all():
            raise SelfTestError(f'{name} is not finite on {device}')
        scale = equation.abs().max().clamp(min=1)
        largest = max(largest, ((equation - kernel).abs().max() / scale).item())
    return largest


def gates(device: str) -> str:
    """All gates, kernels against equations."""
    differences = {name: gate_difference(name, device) for name in attention.__all__}
    bad = [name for name, value in differences.items() if not value <= TOLERANCE[device]]
    text = ', '.join(f'{name} {value:.0e}' for name, value in differences.items())
    if bad:
        raise SelfTestError(
            f'kernels differ from the equations: {text}',
            f'MMATTN_IMPL=reference until this is mended; report this page, please ({bad[0]})',
        )
    return f'kernels - equations: {text}'


def nms(module: str, function: Callable, device: str) -> None:
    """NMS of three boxes, worked by hand."""
    boxes, scores = torch.tensor(BOXES, device=device), torch.tensor(SCORES, device=device)
    try:
        kept = function(boxes, scores, 0.5)
    except RuntimeError as error:
        raise SelfTestError(
            f'{module} on {device}: {" ".join(str(error).split())[:200]}',
            "MMATTN_MMCV_OPS=torchvision takes torchvision's operators"
            if module == 'mmcv'
            else 'pip install torch torchvision, together and of one CUDA version',
        ) from error
    if kept.tolist() != KEPT:
        raise SelfTestError(f'{module} on {device} keeps {kept.tolist()} of {KEPT}')


def all_nms() -> str:
    """torchvision's and mmcv's, on every device there is."""
    found = []
    if importlib.util.find_spec('torchvision'):
        from torchvision.ops import nms as vision

        found.append(('torchvision', vision))
    if importlib.util.find_spec('mmcv'):
        try:
            from mmcv.ops import nms as mmcv
        except ImportError:  # said where the operators are
            pass
        else:
            found.append(('mmcv', lambda *args: mmcv(*args)[1]))
    for name, function in found:
        for device in devices():
            nms(name, function, device)
    return f'right ({", ".join(name for name, _ in found)})' if found else 'nobody has one'


def host(codebase: str) -> None:
    """A ResNet-18 of a codebase with CAT in it: forward and backward."""
    registry = importlib.import_module(f'{codebase}.registry').MODELS
    plugins = [dict(cfg=dict(type='CAT', reduction=4), position='after_conv2')]
    model = registry.build(dict(type='PluginResNet', depth=18, plugins=plugins))
    gates = sum(isinstance(module, attention.CAT) for module in model.modules())
    if gates != 8:
        raise SelfTestError(f"{gates} gates in {codebase}'s ResNet-18, where 8 belong")
    model.train()
    sum(y.mean() for y in model(torch.randn(2, 3, 32, 32))).backward()


def hosts(codebases: Sequence[str]) -> str:
    """The hosts of some codebases."""
    for codebase in codebases:
        host(codebase)
    return f'ResNet-18 + CAT trains ({", ".join(codebases)})' if codebases else 'no codebase'


def checkpoint() -> str:
    """Whether mmengine loads what it saves: it keeps more than tensors in a checkpoint."""
    from mmengine.logging import HistoryBuffer
    from mmengine.runner.checkpoint import _load_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'x.pth')
        torch.save(dict(state_dict={}, message_hub=dict(loss=HistoryBuffer([1.0], [1]))), path)
        try:
            _load_checkpoint(str(path), map_location='cpu')
        except Exception as error:
            raise SelfTestError(
                f'mmengine does not load its own checkpoints with torch {torch.__version__}: '
                f'{" ".join(str(error).split())[:120]}',
                'pip uninstall mmengine; pip install onedl-mmengine, or stay below torch 2.6',
            ) from error
    return 'loaded as saved'


def devices() -> tuple[str, ...]:
    """'cpu', and 'cuda' where torch sees a GPU."""
    return ('cpu', 'cuda') if torch.cuda.is_available() else ('cpu',)


def tests(codebases: Sequence[str]) -> list[tuple[str, Callable[[], str]]]:
    """(name, function) of each test, with the hosts of these codebases."""
    return [
        *((f'gates {device}', functools.partial(gates, device)) for device in devices()),
        ('NMS', all_nms),
        ('hosts', functools.partial(hosts, codebases)),
        ('checkpoint', checkpoint),
    ]
