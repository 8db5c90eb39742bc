"""What is data, and what names anything but what is registered."""

import re
from pathlib import Path
from typing import Any

SCOPES = ('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg', 'mmattn')
IMPORTS = ('mmattn', 'mmattn.runs')
MAX_DEPTH = 50


class PlainConfigError(ValueError):
    """A config that is not only data, with its file and line."""


def checked(path: Path, contents: Any, depth: int = 0) -> Any:
    """The same, if it is of plain values with text as keys, at most `MAX_DEPTH` deep."""
    if depth > MAX_DEPTH:
        raise PlainConfigError(f'{path}: more than {MAX_DEPTH} levels')
    if isinstance(contents, dict):
        for key, value in contents.items():
            if not isinstance(key, str):
                raise PlainConfigError(f'{path}: a key that is no text: {str(key)[:40]!r}')
            checked(path, value, depth + 1)
    elif isinstance(contents, (list, tuple)):
        for item in contents:
            checked(path, item, depth + 1)
    elif not isinstance(contents, (str, int, float, bool, type(None))):
        raise PlainConfigError(f'{path}: {type(contents).__name__}: {str(contents)[:40]}')
    elif isinstance(contents, str) and re.search(r'\{\{.*\}\}', contents):
        raise PlainConfigError(
            f'{path}: a template, which is not filled in here: {contents[:40]!r}'
        )
    return contents


def check_names(path: Path, contents: dict[str, Any]) -> None:
    """Raises PlainConfigError for a name that would have a module imported."""
    imports = contents.get('custom_imports') or {}
    names = imports.get('imports', []) if isinstance(imports, dict) else imports
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, (list, tuple)) or any(name not in IMPORTS for name in names):
        raise PlainConfigError(
            f'{path}: custom_imports runs what it imports; allowed: {", ".join(IMPORTS)}'
        )
    scope = contents.get('default_scope')
    if scope is not None and scope not in SCOPES:
        raise PlainConfigError(f'{path}: default_scope {scope!r}; allowed: {", ".join(SCOPES)}')
    _check_types(path, contents)


def _check_types(path: Path, contents: Any) -> None:
    if isinstance(contents, dict):
        kind, scope = contents.get('type'), contents.get('_scope_')
        prefix = kind.rpartition('.')[0] if isinstance(kind, str) else ''
        if prefix and prefix not in SCOPES or scope is not None and scope not in SCOPES:
            raise PlainConfigError(
                f'{path}: type {str(kind)[:60]!r} could be anything; allowed: a name that is '
                f'registered, alone or after one of {", ".join(SCOPES)} and a dot'
            )
    for item in contents.values() if isinstance(contents, dict) else contents:
        if isinstance(item, (dict, list, tuple)):
            _check_types(path, item)
