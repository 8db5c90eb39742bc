"""What the converters share: a ResNet's names, its gates as `plugins`, the check against a host.

A gate's weights say its arguments (its hidden width, its kernel), stage by stage.
"""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.registry import DefaultScope
from torch import Tensor

from mmattn.runs.pretrained import EMA_EXTRAS, WRAPPERS

CODEBASES = ('mmpretrain', 'mmdet', 'mmseg')
DEPTHS = {
    ('conv2', (2, 2, 2, 2)): 18,
    ('conv2', (3, 4, 6, 3)): 34,
    ('conv3', (3, 4, 6, 3)): 50,
    ('conv3', (3, 4, 23, 3)): 101,
    ('conv3', (3, 8, 36, 3)): 152,
}
BLOCK = re.compile(r'layer(?P<stage>[1-4])\.(?P<block>\d+)\.(?P<rest>.+)')
# A stem of three convolutions in timm: its layers, and what mmpretrain calls them; mmdet's and
# mmseg's are one sequence.
DEEP_STEM = {
    'conv1.0': ('stem.0.conv', 'stem.0'),
    'conv1.1': ('stem.0.bn', 'stem.1'),
    'conv1.3': ('stem.1.conv', 'stem.3'),
    'conv1.4': ('stem.1.bn', 'stem.4'),
    'conv1.6': ('stem.2.conv', 'stem.6'),
    'bn1': ('stem.2.bn', 'stem.7'),
}
SHOWN = 3


@dataclass(frozen=True)
class Converted:
    """An image classifier's weights under the names of an OpenMMLab model with one of our hosts.

    Args:
        state_dict (dict[str, Tensor]): `backbone.*` and `head.fc.*`.
        backbone (dict): The config of the backbone that they are for.
    """

    state_dict: dict[str, Tensor]
    backbone: dict[str, Any]


@dataclass(frozen=True)
class GateNames:
    """How a gate is stored in a block.

    Args:
        child (str): What the block calls it.
        kind (str): Our type.
        names (dict): Its tensors, and ours.
        arguments (Callable): From one gate's tensors, by our names, to the arguments of the type.
    """

    child: str
    kind: str
    names: dict[str, str]
    arguments: Callable[[dict[str, Tensor]], dict[str, Any]]


def plain(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of DataParallel and the like, nor what an EMA copy keeps beside."""
    weights = {name: value for name, value in weights.items() if not EMA_EXTRAS.match(name)}
    for prefix in WRAPPERS * len(WRAPPERS):
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def convert_resnet(
    weights: dict[str, Tensor], gate: GateNames, codebase: str = 'mmpretrain', deep: bool = False
) -> Converted:
    """A ResNet with a gate before the sum of each block, under our names.

    Args:
        weights (dict[str, Tensor]): By torchvision's names (`layer1.0.conv1.weight`, ...).
        gate (GateNames): The gate.
        codebase (str): One of `CODEBASES`, whose `PluginResNet` the names are for.
        deep (bool): Whether the stem has three convolutions and shortcuts are pooled (ResNet-D).

    Raises:
        ValueError: in one line, for weights that are not those of such a network.
    """
    weights = plain(weights)
    depth, last = _depth(weights)
    state, gates = {}, {}
    for name, value in weights.items():
        found = BLOCK.fullmatch(name)
        if name.startswith('fc.'):
            state[f'head.{name}'] = value
        elif found is None:
            state[f'backbone.{_stem(name, codebase) if deep else name}'] = value
        elif found['rest'].startswith(f'{gate.child}.'):
            inner = _renamed(name, found['rest'].removeprefix(f'{gate.child}.'), gate.names)
            place = int(found['stage']), int(found['block'])
            gates.setdefault(place, {})[inner] = value
        else:
            if deep and found['rest'].startswith('downsample.'):
                name = _shortcut(name, found, codebase)
            state[f'backbone.{name}'] = value
    position = f'after_{last}'
    plugins, abbr = plugins_of(gate, gates, position), _abbr(gate.kind)
    for (stage, block), tensors in gates.items():
        for inner, value in tensors.items():
            state[f'backbone.layer{stage}.{block}.{abbr}.{inner}'] = shaped(inner, value)
    backbone = dict(type='PluginResNet', depth=depth, plugins=plugins)
    if deep:
        backbone.update(deep_stem=True, avg_down=True)
    converted = Converted(state, backbone)
    check(converted, codebase)
    return converted


def plugins_of(
    gate: GateNames, gates: dict[tuple[int, int], dict[str, Tensor]], position: str, stages: int = 4
) -> list[dict[str, Any]]:
    """The entries of `plugins`, from the tensors of the gate of each (stage, block), from 1.

    Raises:
        ValueError: if there is none, or two of a stage have different arguments.
    """
    if not gates:
        raise ValueError(f'there is no {gate.kind} in these weights: no block has a {gate.child}')
    by_stage = {}
    for (stage, block), tensors in sorted(gates.items()):
        try:
            arguments = gate.arguments(tensors)
        except (KeyError, IndexError) as error:
            raise ValueError(
                f'the {gate.kind} of block {block} of stage {stage} lacks {error}'
            ) from error
        if by_stage.setdefault(stage, arguments) != arguments:
            raise ValueError(f'the {gate.kind} of stage {stage} are not alike')
    entries = []
    for arguments in by_stage.values():
        flags = tuple(by_stage.get(stage + 1) == arguments for stage in range(stages))
        entry = dict(cfg=dict(type=gate.kind, **arguments), position=position, stages=flags)
        if entry not in entries:
            entries.append(entry)
    return entries


def shaped(name: str, value: Tensor) -> Tensor:
    """Of a gate: linear layers may have been 1 x 1 convolutions."""
    return value.flatten(1) if name.startswith('mlp.') and value.dim() == 4 else value


def check(converted: Converted, codebase: str) -> None:
    """Compare names and shapes with the host's, built without memory.

    Raises:
        ValueError: in one line, if they are not the same.
    """
    if codebase not in CODEBASES:
        raise ValueError(f'codebase must be one of {", ".join(CODEBASES)}, got {codebase!r}')
    try:
        registry = importlib.import_module(f'{codebase}.registry').MODELS
    except ImportError as error:
        raise ValueError(f'{codebase} is not there to check the names against: {error}') from error
    registry.import_from_location()
    from mmattn.analysis.complexity import ReadableLinspace

    with DefaultScope.overwrite_default_scope(codebase), torch.device('meta'), ReadableLinspace():
        host = registry.build(dict(converted.backbone))
    wanted = {f'backbone.{name}': value.shape for name, value in host.state_dict().items()}
    found = {
        name: value.shape
        for name, value in converted.state_dict.items()
        if not name.startswith('head.')
    }
    counts = {name for name in {**wanted, **found} if name.endswith('num_batches_tracked')}
    problems = {
        'missing': wanted.keys() - found.keys() - counts,
        'unexpected': found.keys() - wanted.keys() - counts,
        'of another shape': {
            name for name in wanted.keys() & found.keys() if wanted[name] != found[name]
        },
    }
    said = [
        f'{what}: {", ".join(sorted(names)[:SHOWN])}' + (', ...' if len(names) > SHOWN else '')
        for what, names in problems.items()
        if names
    ]
    if said:
        raise ValueError(f'these weights are not those of {converted.backbone}; {"; ".join(said)}')


def _depth(weights: dict[str, Tensor]) -> tuple[int, str]:
    """A ResNet's depth, and the last convolution of its blocks."""
    blocks = {
        (int(found['stage']), int(found['block']))
        for found in map(BLOCK.fullmatch, weights)
        if found
    }
    first, second, third, fourth = (
        sum(stage == number for stage, _ in blocks) for number in range(1, 5)
    )
    counts = first, second, third, fourth
    last = 'conv3' if any('.conv3.' in name for name in weights) else 'conv2'
    if (last, counts) not in DEPTHS:
        known = ', '.join(map(str, DEPTHS.values()))
        raise ValueError(
            f'these weights have {counts} blocks in layer1 to layer4, which is no ResNet of our '
            f'hosts; allowed: those of depth {known}'
        )
    return DEPTHS[last, counts], last


def _renamed(full: str, name: str, names: dict[str, str]) -> str:
    for theirs, ours in names.items():
        if name.startswith(f'{theirs}.'):
            return f'{ours}.{name.removeprefix(f"{theirs}.")}'
    raise ValueError(f'{full}: the gate has none of that name; known: {", ".join(names)}')


def _stem(name: str, codebase: str) -> str:
    layer, _, tensor = name.rpartition('.')
    if layer not in DEEP_STEM:
        raise ValueError(f'{name} is none of a stem of three convolutions')
    return f'{DEEP_STEM[layer][codebase != "mmpretrain"]}.{tensor}'


def _shortcut(name: str, found: re.Match, codebase: str) -> str:
    """mmpretrain leaves out the pooling of the first stage, which is none."""
    if codebase != 'mmpretrain' or found['stage'] != '1':
        return name
    return re.sub(r'downsample\.(\d)', lambda m: f'downsample.{int(m[1]) - 1}', name)


def _abbr(kind: str) -> str:
    return getattr(importlib.import_module('mmattn.attention'), kind)._abbr_
