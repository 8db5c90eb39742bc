"""`py.typed` is a promise: what users call, and what they write configs for, has types.

That these hold, `python -m mypy` checks (tools/run_tests.sh).
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / 'mmattn'
FILES = [
    PACKAGE / 'registry.py',
    *(
        path
        for room in ('attention', 'hosts', 'leaderboard', 'ops', 'papers')
        for path in (PACKAGE / room).glob('*.py')
    ),
]


def untyped(function):
    """What of a function has no type: its arguments, but self, and its result."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    without = [arg.arg for arg in named if arg is not None and arg.annotation is None]
    if without and without[0] in ('self', 'cls'):
        without = without[1:]
    return without + ['return'] * (function.returns is None)


def public(tree):
    """Functions, and methods of classes, whose names do not begin with one underscore."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from public(node)
        elif isinstance(node, ast.FunctionDef) and (
            not node.name.startswith('_') or node.name == '__init__'
        ):
            yield node


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_functions_are_typed(path):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    assert not {f.name: untyped(f) for f in public(tree) if untyped(f)}
