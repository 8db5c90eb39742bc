"""Which modules a pattern names."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from .modules import HOST, Behind, placed


def matches(name: str, pattern: str) -> bool:
    """Whether a module's name fits a pattern.

    Part by part: `*`, `?` and `[...]` stay within a part between dots, `**` is any number of parts.
    So `stages.*` is every stage and `stages.**` all that is in them.
    """
    return _matches(name.split('.'), pattern.split('.'))


def _matches(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == '**':
        return any(_matches(parts[i:], patterns[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def host_names(model: nn.Module) -> list[str]:
    """The names of all modules but the model itself, its gates and what holds them."""
    ours: set[str] = set()
    for name, owner, place in placed(model):
        inner = f'{name}.' if name else ''
        ours.update(f'{inner}{spot.name}' for spot in place.spots)
        if isinstance(owner, Behind):
            ours.add(f'{inner}{HOST}')
    names, below = [], tuple(f'{name}.' for name in ours)
    for name, _ in model.named_modules(remove_duplicate=False):
        if name and name not in ours and not name.startswith(below):
            names.append(name)
    return names


def find(model: nn.Module, at: str | Iterable[str]) -> list[str]:
    """The names that fit one of the patterns, in the model's order.

    Raises:
        ValueError: for a pattern that fits none, with the names nearest to it.
    """
    patterns = patterns_of(at)
    names = host_names(model)
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise ValueError(
                f'at={pattern!r}: no module has such a name; {_nearest(pattern, names)}'
            )
    return [name for name in names if any(matches(name, p) for p in patterns)]


def patterns_of(at: str | Iterable[str]) -> list[str]:
    """`at` as a list; ValueError if it is no pattern and no list of such."""
    patterns = [at] if isinstance(at, str) or not isinstance(at, Iterable) else list(at)
    if not patterns or not all(isinstance(p, str) and p for p in patterns):
        raise ValueError(f'at must be a pattern of module names, or a list of such, got {at!r}')
    return patterns


def _nearest(pattern: str, names: list[str]) -> str:
    near = difflib.get_close_matches(pattern, names, n=4, cutoff=0.5)
    if not near:
        near = [name for name in names if '.' not in name][:12]
    return f'near it: {", ".join(near)}' if near else 'the model has no modules'
