"""Configs as data (`--plain-config`): reading one runs nothing, and it can name only what is there.

JSON, YAML, or the part of Python that configs are mostly written in: assignments of literals,
`dict(key=value)`, names given before, `+`, `**`, `*`, and `_base_`. OpenMMLab's own reader executes
a config, and its registries import and call whatever a `type` names (`os.system`, say); `restrict`
closes that as well.
"""

import ast
import json
import re
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import yaml
from mmengine.config import Config
from mmengine.fileio.handlers import PickleHandler
from mmengine.fileio.handlers.registry_utils import file_handlers
from mmengine.registry import registry as registries

SUFFIXES = ('.py', '.json', '.yml', '.yaml')
SCOPES = ('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg', 'mmattn')
IMPORTS = ('mmattn', 'mmattn.runs')
MAX_BYTES, MAX_FILES, MAX_DEPTH, MAX_ITEMS = 10**6, 100, 50, 10**5
MAX_TEXT = 10**5


class PlainConfigError(ValueError):
    """A config that is not only data, with its file and line."""


def load(path: str | Path) -> Config:
    """The config in a file and those it is based on, merged as OpenMMLab merges them.

    Raises:
        FileNotFoundError: if it, or one it is based on, is missing.
        PlainConfigError: in one line, for whatever is not data, or makes no config.
    """
    path = Path(path)
    try:
        contents = _checked(path, _merged(path, (), []))
        _check_names(path, contents)
        return Config(contents, filename=str(path))
    except RecursionError:
        raise PlainConfigError(f'{path}: more than {MAX_DEPTH} levels') from None
    except (KeyError, TypeError) as error:  # what mmengine says of dicts that do not merge
        raise PlainConfigError(f'{path}: {error.args[0] if error.args else error}') from error


def restrict() -> None:
    """Lets the registries of this process build only what is registered, and nothing unpickle.

    For the life of the process: a type like 'os.system' is unknown from here on.
    """

    def known(name: str, *args: Any) -> Any:
        if name.split('.')[0] not in SCOPES:
            raise ImportError(f'{name} is none of {", ".join(SCOPES)}')
        return import_module(name, *args)

    class WriteOnly(PickleHandler):
        def load_from_fileobj(self, file: Any, **_: Any) -> Any:
            raise PlainConfigError('a pickle, which --plain-config does not read')

        def load_from_path(self, filepath: Any, **_: Any) -> Any:
            raise PlainConfigError(f'{filepath} is a pickle, which --plain-config does not read')

    registries.get_object_from_string = lambda name: None
    registries.import_module = known
    for suffix in ('pkl', 'pickle'):
        file_handlers[suffix] = WriteOnly()


# ------------------------------------------------------------------------- files and their bases


def _merged(path: Path, above: tuple[Path, ...], read: list[Path]) -> dict[str, Any]:
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
        return _Python(path, bases_of).read(text)
    contents = _json(path, text) if path.suffix == '.json' else _yaml(path, text)
    if not isinstance(contents, dict):
        raise PlainConfigError(f'{path}: must be a mapping, got {type(contents).__name__}')
    base = bases_of(contents.pop('_base_', []))
    return Config._merge_a_into_b(_checked(path, contents), base)


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
    merged: dict[str, Any] = {}
    for name in names:
        if '://' in name or '::' in name or '\0' in name:
            raise PlainConfigError(f'{path}: _base_ must be a local file, got {name!r}')
        base = _merged(path.parent / name, above, read)
        twice = sorted(set(base) & set(merged))
        if twice:
            raise PlainConfigError(f'{path}: two bases have the keys {", ".join(twice)}')
        merged.update(base)
    return merged


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


# ------------------------------------------------------------------------------ the part of Python


class _Python:
    """One file: a table of what its names stand for, and how each expression is read."""

    def __init__(self, path: Path, bases_of: Callable[[Any], dict[str, Any]]) -> None:
        self.path, self.bases_of = path, bases_of
        self.names, self.base, self.items = {}, {}, 0

    def refuse(self, node: ast.expr | ast.stmt, what: str) -> NoReturn:
        raise PlainConfigError(
            f'{self.path}:{node.lineno}: {what}; allowed: assignments of literals, '
            'dict(key=value), names given before, +, * and ** inside brackets, _base_'
        )

    def read(self, text: str) -> dict[str, Any]:
        try:
            tree = ast.parse(text)
        except SyntaxError as error:
            raise PlainConfigError(f'{self.path}:{error.lineno}: {error.msg}') from None
        except MemoryError:  # the parser's, which has a small one of its own
            raise PlainConfigError(f'{self.path}: too many levels') from None
        except ValueError as error:  # null bytes
            raise PlainConfigError(f'{self.path}: {error}') from None
        for number, statement in enumerate(tree.body):
            if number == 0 and ast.get_docstring(tree, clean=False) is not None:
                continue
            if not isinstance(statement, ast.Assign):
                self.refuse(statement, type(statement).__name__)
            for target in statement.targets:
                if not isinstance(target, ast.Name):
                    self.refuse(target, 'an assignment to more than a name')
                # Each a value of its own, as nothing here shares what it holds.
                value = self.value(statement.value)
                if target.id == '_base_':
                    value = self.base = self.bases_of(value)
                self.names[target.id] = value
        own = {key: value for key, value in self.names.items() if not key.startswith('__')}
        own.pop('_base_', None)
        return Config._merge_a_into_b(_checked(self.path, own), self.base)

    def value(self, node: ast.expr) -> Any:
        self.items += 1
        if self.items > MAX_ITEMS:
            self.refuse(node, f'more than {MAX_ITEMS} items')
        method = getattr(self, f'read_{type(node).__name__}', None)
        if method is None:
            self.refuse(node, type(node).__name__)
        return method(node)

    def read_Constant(self, node: ast.Constant) -> str | int | float | bool | None:
        if not isinstance(node.value, (str, int, float, bool, type(None))):
            self.refuse(node, repr(node.value)[:40])
        return node.value

    def read_List(self, node: ast.List | ast.Tuple) -> list[Any]:
        items = []
        for item in node.elts:
            if isinstance(item, ast.Starred):
                more = self.value(item.value)
                if not isinstance(more, (list, tuple)):
                    self.refuse(item, '* of what is no list')
                items.extend(more)
            else:
                items.append(self.value(item))
        return items

    def read_Tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self.read_List(node))

    def read_Dict(self, node: ast.Dict) -> dict[str, Any]:
        return self.pairs(node, zip(node.keys, node.values, strict=True))

    def read_Call(self, node: ast.Call) -> dict[str, Any]:
        if not (isinstance(node.func, ast.Name) and node.func.id == 'dict') or node.args:
            self.refuse(node, f'a call of {ast.unparse(node.func)[:40]}')
        return self.pairs(node, ((word.arg, word.value) for word in node.keywords))

    def pairs(
        self, node: ast.expr, pairs: Iterable[tuple[str | ast.expr | None, ast.expr]]
    ) -> dict[str, Any]:
        found = {}
        for key, value in pairs:
            if key is None:
                more = self.value(value)
                if not isinstance(more, dict):
                    self.refuse(node, '** of what is no dict')
            else:
                more = {key if isinstance(key, str) else self.value(key): self.value(value)}
            if not all(isinstance(name, str) for name in more):
                self.refuse(node, 'a key that is no text')
            found.update(more)
        return found

    def read_Name(self, node: ast.Name) -> Any:
        if node.id not in self.names:
            self.refuse(node, f'{node.id}, which has no value here')
        return self.copied(node, self.names[node.id])

    def read_Attribute(self, node: ast.Attribute) -> Any:
        names: list[str] = []
        owner: ast.expr = node
        while isinstance(owner, ast.Attribute):
            names.append(owner.attr)
            owner = owner.value
        if not isinstance(owner, ast.Name) or owner.id != '_base_':
            self.refuse(node, 'an attribute of other than _base_')
        found = self.base
        for name in reversed(names):
            if not isinstance(found, dict) or name not in found:
                self.refuse(node, f'_base_ has no {".".join(reversed(names))}')
            found = found[name]
        return self.copied(node, found)

    def read_UnaryOp(self, node: ast.UnaryOp) -> int | float:
        value = self.value(node.operand)
        if not isinstance(node.op, ast.USub) or type(value) not in (int, float):
            self.refuse(node, 'an operator')
        return -value

    def read_BinOp(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        numbers = type(left) in (int, float) and type(right) in (int, float)
        alike = type(left) is type(right) and isinstance(left, (str, list, tuple))
        if not isinstance(node.op, ast.Add) or not (numbers or alike):
            self.refuse(node, 'an operator other than + of two texts, lists or numbers')
        if isinstance(left, str) and len(left) + len(right) > MAX_TEXT:
            self.refuse(node, f'a text of more than {MAX_TEXT} characters')
        return left + right

    def copied(self, node: ast.expr, value: Any) -> Any:
        """A copy, which counts: a few lines of lists of lists could stand for any amount."""
        self.items += 1
        if self.items > MAX_ITEMS:
            self.refuse(node, f'more than {MAX_ITEMS} items')
        if isinstance(value, dict):
            return {key: self.copied(node, item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.copied(node, item) for item in value)
        return value


# --------------------------------------------------------------------------------- what is data


def _checked(path: Path, contents: Any, depth: int = 0) -> Any:
    """The same, if it is of plain values with text as keys, at most `MAX_DEPTH` deep."""
    if depth > MAX_DEPTH:
        raise PlainConfigError(f'{path}: more than {MAX_DEPTH} levels')
    if isinstance(contents, dict):
        for key, value in contents.items():
            if not isinstance(key, str):
                raise PlainConfigError(f'{path}: a key that is no text: {str(key)[:40]!r}')
            _checked(path, value, depth + 1)
    elif isinstance(contents, (list, tuple)):
        for item in contents:
            _checked(path, item, depth + 1)
    elif not isinstance(contents, (str, int, float, bool, type(None))):
        raise PlainConfigError(f'{path}: {type(contents).__name__}: {str(contents)[:40]}')
    elif isinstance(contents, str) and re.search(r'\{\{.*\}\}', contents):
        raise PlainConfigError(
            f'{path}: a template, which is not filled in here: {contents[:40]!r}'
        )
    return contents


def _check_names(path: Path, contents: dict[str, Any]) -> None:
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
