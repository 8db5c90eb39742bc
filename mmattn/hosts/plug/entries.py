"""The config key `plug`: a list of dicts, each what one call of `plug` takes."""

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from .plugging import plug, unplug
from .targets import Plugged

# An entry's keys: `cfg` is the gate's type and arguments, the others are arguments of `plug`.
KEYS = ('cfg', *(key for key in inspect.signature(plug).parameters if key not in ('model', 'gate')))


def plug_entries(model: nn.Module, entries: Sequence[dict[str, Any]]) -> list[Plugged]:
    """Plug a model as a config says: `[dict(cfg=dict(type='CAT'), at='backbone.stage3.*'), ...]`.

    Args:
        model (nn.Module): Changed in place, by all entries or by none.
        entries (Sequence[dict]): With `cfg` and `at`, and what else `plug` takes.

    Raises:
        ValueError: if an entry is no such dict; see `plug`.
    """
    entries = [entries] if isinstance(entries, dict) else entries
    if not isinstance(entries, (list, tuple)):
        raise ValueError(f'plug must be a list of dicts, got {entries!r}')
    for entry in entries:
        _check(entry)
    found: list[Plugged] = []
    try:
        for number, entry in enumerate(entries):
            rest = {key: value for key, value in entry.items() if key != 'cfg'}
            try:
                found += plug(model, entry['cfg'], **rest)
            except ValueError as error:
                which = f'plug[{number}]: ' if len(entries) > 1 else ''
                raise ValueError(f'{which}{error}') from error
    except BaseException:
        if found:
            unplug(model, [place.at for place in found])
        raise
    return found


def _check(entry: Any) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f'plug: {entry!r} must be a dict; keys allowed: {", ".join(KEYS)}')
    for key in entry:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f'did you mean {near[0]!r}? ' if near else ''
            raise ValueError(f'plug: unknown key {key!r}; {hint}allowed: {", ".join(KEYS)}')
    for key in ('cfg', 'at'):
        if key not in entry:
            raise ValueError(f'plug: {entry!r} has no {key!r}; allowed: {", ".join(KEYS)}')
