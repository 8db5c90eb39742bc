"""Starts a model's backbone from a checkpoint: every weight of it and of its gates, or an error."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader, Runner
from torch import Tensor, nn

from mmattn.hosts.fresh import gates_before, warn_of_fresh
from mmattn.hosts.host import PluginHost
from mmattn.hosts.plug.modules import placed
from mmattn.registry import register

from . import checkpoint

# What DistributedDataParallel, an EMA copy and torch.compile put before every name, and what an EMA
# copy and mmcv's EMA hook put beside them.
WRAPPERS = ('module.', '_orig_mod.', 'model.')
EMA_EXTRAS = re.compile(r'(steps|n_averaged)$|ema_')
# The rest of a model, by the first part of a name: mmpretrain's, mmdet's, mmseg's, torchvision's.
HEADS = re.compile(r'neck|data_preprocessor|fc|classifier|(\w+_)?head')
# timm's layers of SE and ECA.
TIMM = re.compile(r'\.se\.(fc[12]|conv)\.')
SHOWN = 3


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint of mmengine, or of `torch.save(model.state_dict())`.

    Raises:
        CheckpointError: as `checkpoint.load` does.
        ValueError: if the file holds no weights.
    """
    checkpoint.install()
    # By whichever name mmengine takes: a file, https://, torchvision://, msra://.
    found = CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    for key in ('state_dict', 'model'):
        if isinstance(found.get(key), dict):
            found = found[key]
    weights = {name: value for name, value in found.items() if torch.is_tensor(value)}
    if not weights:
        raise ValueError(f'{path} holds no weights: expected a state dict, or one as state_dict')
    return weights


def backbone_of(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's part of a model's weights, and the names that are neither its nor a head's.

    Args:
        weights (dict[str, Tensor]): Of a whole model, whose backbone is `backbone`, or of a
            backbone and a classifier (`conv1.weight`, ..., `fc.weight`); names may have the
            prefixes of DistributedDataParallel, EMA or `torch.compile`.

    Returns:
        tuple[dict[str, Tensor], list[str]]: names are those within the backbone.
    """
    weights = {name: value for name, value in weights.items() if not EMA_EXTRAS.match(name)}
    for prefix in WRAPPERS * len(WRAPPERS):
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    rest = {n: v for n, v in weights.items() if not HEADS.fullmatch(n.split('.')[0])}
    inside = {
        name.removeprefix('backbone.'): value
        for name, value in rest.items()
        if name.startswith('backbone.')
    }
    if not inside:
        return rest, []
    return inside, [name for name in rest if not name.startswith('backbone.')]


def gate_names(part: nn.Module) -> set[str]:
    """The names in a part's state dict that are of gates, in slots or by `plug`."""
    gates = [getattr(owner, spot.name) for _, owner, place in placed(part) for spot in place.spots]
    for module in part.modules():
        if isinstance(module, PluginHost):
            gates += [gate for _, gate in module._plugin_modules()]
    own = {id(t) for gate in gates for t in (*gate.parameters(), *gate.buffers())}
    # By the tensors: a module's name is not always what its tensors are called in a state dict.
    return {name for name, value in part.state_dict(keep_vars=True).items() if id(value) in own}


def load_backbone(model: nn.Module, path: str | Path, fresh_gates: bool = False) -> None:
    """Load a checkpoint's backbone into a model's.

    A detector without FPN has the last stage in its RoI head (`roi_head.shared_head`): it is filled
    as well.

    Args:
        model (nn.Module): With a `backbone`.
        path (str or Path): Of the checkpoint, see `read_state_dict`.
        fresh_gates (bool): Whether the checkpoint is of the network without its gates, which stay
            as they were built.

    Raises:
        ValueError: in one line, if a weight of the backbone or of a gate is not in the checkpoint,
            is there in another shape, or if the checkpoint has one that the model has not.

    Warns:
        UserWarning: for fresh gates that do not start as the identity.
    """
    head: Any = getattr(model, 'roi_head', None)
    parts: list[Any] = [model.backbone]
    # MMDetection's C4 has the last stage in its RoI head, C4FasterRCNN in the backbone, too.
    if getattr(head, 'with_shared_head', False):
        inside = any(module is head.shared_head for module in parts[0].modules())
        parts += [] if inside else [head.shared_head]
    wanted = {name: value for part in parts for name, value in part.state_dict().items()}
    if fresh_gates:
        fresh = {name for part in parts for name in gate_names(part)}
        wanted = {name: value for name, value in wanted.items() if name not in fresh}
    found, strange = backbone_of(read_state_dict(path))
    # Old checkpoints have no counts of batches, which matter to norms without a momentum only.
    counts = {name for name in {**wanted, **found} if name.endswith('num_batches_tracked')}
    names = {
        'missing': wanted.keys() - found.keys() - counts,
        'unexpected': (found.keys() - wanted.keys() - counts) | set(strange),
        'of another shape': {
            f'{name} ({tuple(found[name].shape)}, not {tuple(wanted[name].shape)})'
            for name in wanted.keys() & found.keys()
            if wanted[name].shape != found[name].shape
        },
    }
    problems = [f'{what}: {_some(some)}' for what, some in names.items() if some]
    if problems:
        if any(TIMM.search(name) for name in names['unexpected']):
            problems.append('tools/model_converters/timm_to_mmattn.py converts weights of timm')
        raise ValueError(f'{path} does not fit the backbone; {"; ".join(problems)}')
    before = {gate: was for part in parts for gate, was in gates_before(part).items()}
    for part in parts:
        own = part.state_dict().keys() & found.keys()
        part.load_state_dict({name: found[name] for name in own}, strict=False)
    warn_of_fresh(before)


@register(HOOKS)
class PretrainedHook(Hook):
    """Starts the backbone, gates and all, from a checkpoint of an ImageNet network with them.

    Unlike `init_cfg=dict(type='Pretrained')` it takes every weight or none: see `load_backbone`.
    A resumed run is left alone.

    Args:
        checkpoint (str): As `tools/train.py --pretrained CHECKPOINT` gives it.
        fresh_gates (bool): Whether it is of the network without gates; see `load_backbone`.

    Raises:
        ValueError: before training, if there is no checkpoint, or it does not fit.
    """

    priority = 'VERY_HIGH'

    def __init__(self, checkpoint: str | None = None, fresh_gates: bool = False) -> None:
        self.checkpoint, self.fresh_gates = checkpoint, fresh_gates

    def before_train(self, runner: Runner) -> None:
        if runner.iter > 0:
            return
        if self.checkpoint is None:
            raise ValueError('the checkpoint that the backbone starts from is not named')
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        load_backbone(model, self.checkpoint, self.fresh_gates)
        gates = ', its gates as they were built' if self.fresh_gates else ''
        runner.logger.info(f'The backbone starts from {self.checkpoint}{gates}')


def _some(names: Iterable[str]) -> str:
    """A few names, and how many more there are."""
    names = sorted(names)
    more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
    return ', '.join(names[:SHOWN]) + more
