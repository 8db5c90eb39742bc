"""`py.typed` is a promise: every function that others may call has types, the tools' as well.

That these hold, and that private ones have them, too, `python -m mypy` checks (tools/run_tests.sh).
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for room in ('mmattn', 'tools') for path in (ROOT / room).rglob('*.py'))


def untyped(function):
    """What of a function has no type: its arguments, but self, and its result."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    without = [arg.arg for arg in named if arg is not None and arg.annotation is None]
    if without and without[0] in ('self', 'cls'):
        without = without[1:]
    return without + ['return'] * (function.returns is None)


def is_kernel(function):
    """Whether Triton compiles it, to whom an annotation is an instruction."""
    return any('jit' in ast.unparse(decorator) for decorator in function.decorator_list)


def public(node):
    """Functions, and methods of public classes, whose names do not begin with one underscore."""
    for child in ast.iter_child_nodes(node):
        name = getattr(child, 'name', None) or ''
        private = name.startswith('_') and name != '__init__'
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            if not private and not is_kernel(child):
                yield child
        elif not private:  # a class, or what stands below an `if`
            yield from public(child)


def faults(text):
    return {f.name: untyped(f) for f in public(ast.parse(text)) if untyped(f)}


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_are_typed(path):
    assert not faults(path.read_text(encoding='utf-8'))


@pytest.mark.parametrize(
    'text, wanted',
    [
        ('def f(x: int, *more: int) -> None: ...', {}),
        ('def f(x, *more: int) -> None: ...', {'f': ['x']}),
        ('async def f(*, x: int): ...', {'f': ['return']}),
        ('def _f(x): ...', {}),
        ('class A:\n    def __init__(self, x): ...', {'__init__': ['x', 'return']}),
        ('class _A:\n    def f(self, x): ...', {}),
        ('if 1:\n    def f(**x): ...', {'f': ['x', 'return']}),
        ('def f() -> None:\n    def g(x): ...', {}),
        ('try: ...\nexcept E:\n    def f(x): ...', {'f': ['x', 'return']}),
        ('@triton.jit\ndef f(x, BLOCK: tl.constexpr): ...', {}),
    ],
)
def test_what_counts(text, wanted):
    assert faults(text) == wanted
