"""The part of Python that plain configs are written in."""

import ast
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from mmengine.config import Config

from .data import PlainConfigError, checked

MAX_ITEMS, MAX_TEXT = 10**5, 10**5


class Reader:
    """One file: a table of what its names stand for, and how each expression is read."""

    def __init__(self, path: Path, bases_of: Callable[[Any], dict[str, Any]]) -> None:
        self.path, self.bases_of = path, bases_of
        self.names: dict[str, Any] = {}
        self.base: dict[str, Any] = {}
        self.items = 0  # read so far

    def refuse(self, node: ast.expr | ast.stmt, what: str) -> NoReturn:
        """Raises PlainConfigError for a piece of the file."""
        raise PlainConfigError(
            f'{self.path}:{node.lineno}: {what}; allowed: assignments of literals, '
            'dict(key=value), names given before, +, * and ** inside brackets, _base_'
        )

    def read(self, text: str) -> dict[str, Any]:
        """The file's contents, merged onto those of its bases.

        Raises:
            PlainConfigError: for whatever is not data.
        """
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
        return Config._merge_a_into_b(checked(self.path, own), self.base)

    def value(self, node: ast.expr) -> Any:
        """What an expression stands for, by the method named after its kind."""
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
        items: list[Any] = []
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
