"""Configs as data (`--plain-config`): reading one runs nothing, and it can name only what is there.

JSON, YAML, or the part of Python that configs are mostly written in: assignments of literals,
`dict(key=value)`, names given before, `+`, `**`, `*`, and `_base_`. OpenMMLab's own reader executes
a config, and its registries import and call whatever a `type` names (`os.system`, say); `restrict`
closes that as well.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.fileio.handlers import PickleHandler
from mmengine.fileio.handlers.registry_utils import file_handlers
from mmengine.registry import registry as registries

from .data import MAX_DEPTH, SCOPES, PlainConfigError, check_names, checked
from .files import merged

__all__ = ['PlainConfigError', 'load', 'restrict']


def load(path: str | Path) -> Config:
    """The config in a file and those it is based on, merged as OpenMMLab merges them.

    Raises:
        FileNotFoundError: if it, or one it is based on, is missing.
        PlainConfigError: in one line, for whatever is not data, or makes no config.
    """
    path = Path(path)
    try:
        contents = checked(path, merged(path, (), []))
        check_names(path, contents)
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
