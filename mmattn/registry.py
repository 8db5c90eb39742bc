"""How everything here enters OpenMMLab's registries: a name that is taken is said to be whose."""

import importlib
import importlib.util
import inspect
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # a gate needs no mmengine
    from mmengine.registry import Registry

T = TypeVar('T', bound=Callable[..., Any])
# The codebases that are installed but broken, which are named once.
_broken: set[str] = set()


def register(registry: 'Registry', name: str | None = None) -> Callable[[T], T]:
    """The decorator of a class that enters `registry`, as `registry.register_module` is.

    A class that is loaded once more, by `importlib.reload` or by a second name of its file, takes
    the place of its former self.

    Args:
        registry (Registry): mmengine's or a codebase's.
        name (str, optional): In the registry; None is the class's own.

    Raises:
        RuntimeError: in one line, with module and file, if another class has the name. It is no
            ImportError, which `custom_imports` may swallow: the other class would be built.
    """

    def enter(cls: T) -> T:
        taken = name or cls.__name__
        other = registry.module_dict.get(taken)
        if other is not None and _origin(other) != _origin(cls):
            raise RuntimeError(
                f'mmattn cannot register its {cls.__name__}: the name {taken!r} is taken in '
                f"{registry.scope}'s registry {registry.name!r} by {described(other)}; give that "
                'another name, or drop it before mmattn is imported, by the '
                f"registry's module_dict.pop({taken!r})"
            )
        return registry.register_module(name=name, force=True, module=cls)

    return enter


def register_gate(cls: T) -> T:
    """The decorator of a gate: it enters mmengine's root `MODELS`, where mmengine is installed."""
    if importlib.util.find_spec('mmengine') is None:
        return cls
    from mmengine.registry import MODELS

    return register(MODELS)(cls)


def register_when_used(codebase: str, registry: str, module: str) -> None:
    """Let `module` enter its classes in a codebase's registry when that is first asked for one.

    It is imported where mmengine imports the codebase's own classes, right after them: who uses one
    codebase does not wait for the import of the others. Nothing happens where it is not installed.

    Args:
        codebase (str): Import name, such as 'mmdet'.
        registry (str): Its name in `<codebase>.registry`, such as 'MODELS'.
        module (str): Full name of the module.

    Warns:
        UserWarning: once for a codebase that is installed, but cannot be imported.
    """
    spec = importlib.util.find_spec(codebase)
    # A mere folder of that name in the working directory has a spec, but no origin.
    if spec is None or spec.origin is None:
        return
    try:
        found = getattr(importlib.import_module(f'{codebase}.registry'), registry)
    except Exception as error:
        if codebase in _broken:
            return
        _broken.add(codebase)
        warnings.warn(
            f"{codebase} is installed but fails to import, so mmattn's classes for it are missing: "
            f'{type(error).__name__}: {error}',
            stacklevel=3,
        )
        return
    # mmengine has no public way to add a location.
    if getattr(found, '_imported', True) or not found._locations:
        importlib.import_module(module)
    elif module not in found._locations:
        found._locations.append(module)


def _file(thing: Any) -> str | None:
    """The file that defines a class or function; None if there is none (a prompt, C code)."""
    try:
        return os.path.realpath(inspect.getfile(thing))
    except (OSError, TypeError):
        return None


def _origin(thing: Any) -> tuple[str | None, str | None]:
    """What a class that is loaded once more has in common with its former self."""
    file = _file(thing)
    return file or getattr(thing, '__module__', None), getattr(thing, '__qualname__', None)


def described(thing: Any) -> str:
    """A class's full name and file, for messages."""
    name = getattr(thing, '__qualname__', repr(thing))
    return f'{getattr(thing, "__module__", "?")}.{name} ({_file(thing) or "no file"})'
