"""Draws where the slots of each host are, as docs/images/slots/<host>.svg.

Nothing of a picture is drawn by hand: a host is built with a probe in every slot, a picture runs
through it, and what is called in which order is what is drawn. `python docs/draw_slots.py` draws
all anew; a test compares.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import torch
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmattn.hosts import mmpretrain as hosts

FOLDER = Path(__file__).parent / 'images' / 'slots'


@dataclass(frozen=True)
class Host:
    """A host to draw: its class, arguments, and the block to look into."""

    cls: type
    kwargs: dict
    positions: tuple[str, ...]
    block: str


HOSTS = {
    'resnet50': Host(
        hosts.PluginResNet, dict(depth=50), hosts.PluginBottleneck.positions, 'layer2.1'
    ),
    'resnet18': Host(
        hosts.PluginResNet, dict(depth=18), hosts.PluginBasicBlock.positions, 'layer2.1'
    ),
    'mobilenetv2': Host(hosts.PluginMobileNetV2, {}, hosts.PluginMobileNetV2.positions, 'layer2.1'),
    'shufflenetv2': Host(
        hosts.PluginShuffleNetV2, {}, hosts.PluginShuffleNetV2.positions, 'layers.1.1'
    ),
}
KINDS = {
    'Conv2d': 'conv',
    'BatchNorm2d': 'norm',
    'ReLU': 'relu',
    'ReLU6': 'relu6',
    'MaxPool2d': 'max pool',
}


class Probe(nn.Module):
    """A plugin that changes nothing and knows where it is."""

    _abbr_ = 'probe'

    def __init__(self, in_channels: int, position: str) -> None:
        super().__init__()
        self.channels, self.position = in_channels, position

    def forward(self, x: Tensor) -> Tensor:
        return x


class Joins(TorchFunctionMode):
    """Puts what splits and joins branches of the block, which are no modules, into `events`."""

    words = {
        'add': '+ identity',
        '__add__': '+ identity',
        'cat': 'concat',
        'chunk': 'right half',
    }

    def __init__(self, events: list, within: list[str]) -> None:
        super().__init__()
        self.events, self.within = events, within

    def __torch_function__(self, func, types, args=(), kwargs=None):
        word = self.words.get(getattr(func, '__name__', ''))
        if word and 'block' in self.within:
            self.events.append(('join', word))
        return func(*args, **(kwargs or {}))


def _trace(host: Host) -> tuple[list, list]:
    """What runs in the whole host, and in one of its blocks: lists of (kind, text), in order."""
    positions = (*host.positions, 'after_stage', 'after_stem')
    plugins = [dict(cfg=dict(type=Probe, position=p), position=p) for p in positions]
    model = host.cls(plugins=plugins, **host.kwargs)
    model.eval()
    outer, inner = [], []
    within = []  # the stage, and the block, that run at the moment

    def heard(module, inputs, output):
        event = ('layer', KINDS.get(type(module).__name__, type(module).__name__))
        if isinstance(module, Probe):
            event = ('slot', f'{module.position}\n{module.channels} channels')
        if 'block' in within:
            inner.append(event)
        elif not within:
            outer.append(event)

    def ended(module, inputs, output):
        within.pop()
        outer.append(('stage', f'stage {1 + sum(kind == "stage" for kind, _ in outer)}'))
        heard(module.after_stage[0], inputs, output)

    for name, module in model.named_modules():
        if not [*module.children()] and not isinstance(module, nn.Identity):
            module.register_forward_hook(heard)
        if hasattr(module, 'after_stage'):
            module.register_forward_pre_hook(lambda *_: within.append('stage'))
            module.register_forward_hook(ended)
        if name == host.block:
            module.register_forward_pre_hook(lambda *_: within.append('block'))
            module.register_forward_hook(lambda *_: within.remove('block'))
    with torch.no_grad(), Joins(inner, within):
        model(torch.zeros(1, 3, 64, 64))
    return outer, inner


COLOURS = {
    'layer': ('#eef2f7', '#51606f'),
    'stage': ('#dde7f3', '#2f4a6d'),
    'join': ('#ffffff', '#51606f'),
    'slot': ('#d9480f', '#ffffff'),
}
HEIGHT, GAP, MARGIN, ACROSS = 40, 14, 16, 1060


def _chain(events: list, top: int) -> tuple[list[str], int]:
    """Boxes from left to right, in as many lines as they need, and where they end."""
    x, parts = MARGIN, []
    for number, (kind, text) in enumerate(events):
        lines = text.split('\n')
        width = 18 + 7.4 * max(map(len, lines))
        if x + width > ACROSS - MARGIN:
            x, top = MARGIN, top + HEIGHT + GAP
        if number:
            middle = top + HEIGHT / 2
            parts.append(
                f'<path d="M{x - GAP + 1:.0f} {middle}h{GAP - 2}" stroke="#51606f" '
                'stroke-width="1.5"/>'
            )
        fill, ink = COLOURS[kind]
        parts.append(
            f'<rect x="{x:.0f}" y="{top}" width="{width:.0f}" height="{HEIGHT}" rx="5" '
            f'fill="{fill}" stroke="#51606f"/>'
        )
        for row, line in enumerate(lines):
            y = top + HEIGHT / 2 + 4.5 + 15 * (row - (len(lines) - 1) / 2)
            parts.append(
                f'<text x="{x + width / 2:.0f}" y="{y:.0f}" fill="{ink}" '
                f'text-anchor="middle">{escape(line)}</text>'
            )
        x += width + GAP
    return parts, top + HEIGHT


def draw(name: str) -> str:
    """The picture of a host of `HOSTS` as SVG."""
    host = HOSTS[name]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        outer, inner = _trace(host)
    title = host.cls.__name__ + (f'-{host.kwargs["depth"]}' if host.kwargs else '')
    parts, y = [], MARGIN
    for words, events in (
        (f'{title}, the whole', outer),
        (f'a block ({host.block}), from its input to its output', inner),
    ):
        parts.append(f'<text x="{MARGIN}" y="{y + 14}" font-weight="bold">{words}</text>')
        boxes, y = _chain(events, y + 24)
        parts, y = parts + boxes, y + 22
    body = '\n'.join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {ACROSS} {y}" width="{ACROSS}" '
        f'font-family="sans-serif" font-size="13" fill="#1c2733">\n'
        f'<rect width="{ACROSS}" height="{y}" fill="white"/>\n{body}\n</svg>\n'
    )


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in HOSTS:
        (FOLDER / f'{name}.svg').write_text(draw(name), encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
