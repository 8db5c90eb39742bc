"""No weight decay for `identity_scale`: it would pull each gate back to the identity."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .identity import identity_scales


def spare_identity_scales(model: nn.Module, optimizer: Any) -> int:
    """Take the `identity_scale` of gates out of an optimiser's weight decay.

    They are told by their whole name, which `custom_keys` of mmengine's `paramwise_cfg`, matching
    parts of names, cannot.

    Args:
        model (nn.Module): Whose parameters the optimiser has.
        optimizer: An optimiser, mmengine's `OptimWrapper`, or a dict of these.

    Returns:
        int: how many decayed before.
    """
    ours = {id(parameter) for parameter in identity_scales(model).values()}
    return sum(_spare(found, ours) for found in _optimizers(optimizer)) if ours else 0


def _optimizers(optimizer: Any) -> Iterator[Optimizer]:
    if isinstance(optimizer, Optimizer):
        yield optimizer
    elif hasattr(optimizer, 'optim_wrappers'):  # mmengine's OptimWrapperDict
        for wrapper in optimizer.optim_wrappers.values():
            yield wrapper.optimizer
    elif isinstance(optimizer, dict):
        for value in optimizer.values():
            yield from _optimizers(value)
    else:
        yield optimizer.optimizer


def _spare(optimizer: Optimizer, ours: set[int]) -> int:
    spared = 0
    for group in [*optimizer.param_groups]:
        mine = [i for i, p in enumerate(group['params']) if id(p) in ours]
        if not mine or not group.get('weight_decay'):
            continue
        spared += len(mine)
        if len(mine) == len(group['params']):
            group['weight_decay'] = 0.0
            continue
        apart = {key: value for key, value in group.items() if key != 'params'}
        # What lists something for each parameter: some constructors keep their names.
        lists = [
            k for k, v in group.items() if isinstance(v, list) and len(v) == len(group['params'])
        ]
        for key in lists:
            apart[key] = [group[key][i] for i in mine]
            group[key] = [v for i, v in enumerate(group[key]) if i not in mine]
        optimizer.add_param_group({**apart, 'weight_decay': 0.0})
    return spared
