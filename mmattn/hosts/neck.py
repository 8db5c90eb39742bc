"""Gates at the levels of a neck, in MMDetection, MMSegmentation and MMPreTrain."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmattn.registry import register

from .identity import check_start, start_as_identity
from .plug.dryrun import meta_copy
from .plug.gates import build_gate
from .plug.layouts import Spot
from .plug.modules import Behind, Place


@register(MODELS)
class AttentionNeck(Behind):
    """A gate of its own for each level of a neck; the neck's keys in the state dict stay.

    `neck = dict(type='AttentionNeck', neck=dict(type='FPN', ...), cfg=dict(type='CAT'))`.

    Args:
        cfg (dict): The gates' type and arguments, without `in_channels`.
        neck (dict, optional): The neck; None passes the levels on, as in a model that has none.
        position (str): 'after' gates what the neck gives, 'before' what it is given.
        channels (Sequence[int], optional): Of the gated levels. None finds them: they are the
            neck's `in_channels`, or what it gives for such.
        levels (Sequence[bool], optional): Which levels have a gate; None is all.
        start (str, optional): As in `mmattn.plug`.

    Raises:
        ValueError: for arguments outside these, channels that are not to be found, levels that are
            no maps (after a pooling neck, say: use position='before').
    """

    def __init__(
        self,
        cfg: dict[str, Any],
        neck: dict[str, Any] | None = None,
        position: str = 'after',
        channels: Sequence[int] | None = None,
        levels: Sequence[bool] | None = None,
        start: str | None = None,
    ) -> None:
        if position not in ('before', 'after'):
            raise ValueError(f"AttentionNeck: position {position!r}; allowed: 'before', 'after'")
        check_start(start, 'AttentionNeck')
        with MODELS.switch_scope_and_registry(None) as registry:
            host = nn.Identity() if neck is None else registry.build(neck)
        found = _channels(host, position) if channels is None else [*channels]
        flags = [True] * len(found) if levels is None else [*levels]
        if len(flags) != len(found) or not all(isinstance(flag, bool) for flag in flags):
            raise ValueError(f'AttentionNeck: levels must be {len(found)} bools, got {levels!r}')
        if not any(flags):
            raise ValueError('AttentionNeck: levels has no True, so that there would be no gate')
        gates = []
        place = Place([])
        for level, count in enumerate(found):
            if flags[level]:
                gate, name = build_gate(cfg, count, level)
                if start is not None:
                    start_as_identity(gate, count, start, 'AttentionNeck')
                place.spots.append(Spot((level,), channels=count, name=f'{name}_{level}'))
                gates.append(gate)
        super().__init__(host, place)
        self.position, self.num_levels = position, len(found)
        for spot, gate in zip(place.spots, gates, strict=True):
            self.add_module(spot.name, gate)

    def forward(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The neck's output, a sequence of levels (N, C, H, W) or one, as it gives them."""
        if self.position == 'before':
            inputs = self._gated(inputs)
        out = self.host(inputs, *args, **kwargs)
        return self._gated(out) if self.position == 'after' else out

    def _gated(self, levels: Any) -> Any:
        alone = isinstance(levels, Tensor)
        levels = (levels,) if alone else levels
        if len(levels) != self.num_levels:
            raise ValueError(
                f'AttentionNeck has {self.num_levels} levels and was given {len(levels)}; '
                'allowed: channels with a number for each'
            )
        levels = self.place(self, (), {}, levels)
        return levels[0] if alone else levels


def _channels(neck: nn.Module, position: str) -> list[int]:
    """The channels of each level before or after a neck, from its `in_channels`."""
    given = getattr(neck, 'in_channels', None)
    given = [given] if isinstance(given, int) else given
    if not given:
        raise ValueError(
            'AttentionNeck: the neck has no in_channels to find its levels by; say channels=[...]'
        )
    if position == 'before':
        return [*given]
    inputs = [
        torch.empty(2, count, 64 >> level or 1, 96 >> level or 1, device='meta')
        for level, count in enumerate(given)
    ]
    try:
        made = meta_copy(neck).eval()
        with torch.no_grad():
            out = made(tuple(inputs))
    except Exception as error:
        raise ValueError(
            f'AttentionNeck: the neck cannot be tried ({error}); say channels=[...]'
        ) from error
    out = [out] if isinstance(out, Tensor) else [*out]
    wrong = [level for level in out if not isinstance(level, Tensor) or level.dim() != 4]
    if wrong:
        shape = tuple(wrong[0].shape) if isinstance(wrong[0], Tensor) else type(wrong[0]).__name__
        raise ValueError(
            f"AttentionNeck: the neck gives {shape}, no map; allowed: position='before'"
        )
    return [level.shape[1] for level in out]
