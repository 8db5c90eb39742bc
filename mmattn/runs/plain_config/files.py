"""The files of a config and of those it is based on, as one mapping."""

import json
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

from .data import PlainConfigError, checked
from .python import Reader

SUFFIXES = ('.py', '.json', '.yml', '.yaml')
MAX_BYTES, MAX_FILES = 10**6, 100


def merged(path: Path, above: tuple[Path, ...], read: list[Path]) -> dict[str, Any]:
    """A file's contents merged onto those of its bases.

    Args:
        path (Path): The file.
        above (tuple): Those that are based on it, resolved.
        read (list): All that have been read so far; it is added.

    Raises:
        FileNotFoundError: if it, or one it is based on, is missing.
        PlainConfigError: for whatever is not data.
    """
    read.append(path)
    if len(read) > MAX_FILES:
        raise PlainConfigError(f'{read[0]} is based on more than {MAX_FILES} files')
    if path.resolve() in above:
        raise PlainConfigError(f'{path} is based on itself')
    if path.suffix not in SUFFIXES:
        raise PlainConfigError(f'{path}: allowed are {", ".join(SUFFIXES)}')
    text = _text(path)

    def bases_of(names: Any) -> dict[str, Any]:
        return _bases(path, names, (*above, path.resolve()), read)

    if path.suffix == '.py':
        return Reader(path, bases_of).read(text)
    contents = _json(path, text) if path.suffix == '.json' else _yaml(path, text)
    if not isinstance(contents, dict):
        raise PlainConfigError(f'{path}: must be a mapping, got {type(contents).__name__}')
    base = bases_of(contents.pop('_base_', []))
    return Config._merge_a_into_b(checked(path, contents), base)


def _text(path: Path) -> str:
    with open(path, 'rb') as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise PlainConfigError(f'{path}: more than {MAX_BYTES} bytes')
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise PlainConfigError(f'{path}: not UTF-8: {error.reason}') from None


def _bases(path: Path, names: Any, above: tuple[Path, ...], read: list[Path]) -> dict[str, Any]:
    """The bases of a file side by side, which must have no key in common."""
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise PlainConfigError(f'{path}: _base_ must be a path or a list of paths, got {names!r}')
    found: dict[str, Any] = {}
    for name in names:
        if '://' in name or '::' in name or '\0' in name:
            raise PlainConfigError(f'{path}: _base_ must be a local file, got {name!r}')
        base = merged(path.parent / name, above, read)
        twice = sorted(set(base) & set(found))
        if twice:
            raise PlainConfigError(f'{path}: two bases have the keys {", ".join(twice)}')
        found.update(base)
    return found


def _json(path: Path, text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise PlainConfigError(f'{path}: a key comes twice')
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except PlainConfigError:
        raise
    except ValueError as error:
        raise PlainConfigError(f'{path}: no JSON: {error}') from None


def _yaml(path: Path, text: str) -> Any:
    try:
        # An alias costs nothing to write and may stand for any amount.
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise PlainConfigError(f'{path}:{event.start_mark.line + 1}: aliases are left out')
        return yaml.safe_load(text)
    except PlainConfigError:
        raise
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise PlainConfigError(f'{path}: no YAML: {" ".join(str(error).split())}') from None
