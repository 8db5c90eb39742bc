"""Names that others have registered are refused in a line that says whose; our own, twice, not."""

import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.registry import Registry

from mmattn.registry import register

ROOT = Path(__file__).parents[1]

# The codebases take seconds to import, and most of this is not about them.
ALONE = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *args: (
    None if name.partition('.')[0] in ('mmpretrain', 'mmdet', 'mmseg') else find(name, *args))
"""


def python(code, folder):
    return subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{folder}'},
    )


def write_fork(folder, name):
    path = folder / 'their_fork.py'
    path.write_text(f"""
from mmengine.registry import MODELS

@MODELS.register_module(name={name!r})
class Theirs:
    pass
""")
    return path


def message(ours, name, where, other):
    return (
        f'mmattn cannot register its {ours}: the name {name!r} is taken in {where} by {other}; '
        'give that another name, or drop it before mmattn is imported, by the '
        f"registry's module_dict.pop({name!r})"
    )


def test_a_gate_of_theirs_first(tmp_path):
    path = write_fork(tmp_path, 'CBAM')
    code = f"""{ALONE}
import their_fork
from mmengine.registry import MODELS, RUNNERS
try:
    import mmattn
except RuntimeError as error:
    print(error)
MODELS.module_dict.pop('CBAM')
import mmattn
assert MODELS.get('CBAM') is mmattn.attention.CBAM and mmattn.attention.CBAM(64)

RUNNERS.register_module(name='mmattn.Runner', module=their_fork.Theirs)
import mmattn.runs
"""
    done = python(code, tmp_path)
    theirs = f'their_fork.Theirs ({path})'
    assert done.stdout == message('CBAM', 'CBAM', "mmengine's registry 'model'", theirs) + '\n'
    last = message('Runner', 'mmattn.Runner', "mmengine's registry 'runner'", theirs)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == f'RuntimeError: {last}'


def test_a_host_of_theirs_first(monkeypatch):
    registry = pytest.importorskip('mmpretrain.registry').MODELS
    monkeypatch.setitem(registry.module_dict, 'PluginResNet', python)
    monkeypatch.delitem(sys.modules, 'mmattn.hosts.mmpretrain', raising=False)
    with pytest.raises(RuntimeError) as info:
        importlib.import_module('mmattn.hosts.mmpretrain')
    theirs = f'test_registry.python ({Path(__file__).resolve()})'
    where = "mmpretrain's registry 'model'"
    assert str(info.value) == message('PluginResNet', 'PluginResNet', where, theirs)


def test_ours_twice_and_ours_first(tmp_path):
    write_fork(tmp_path, 'SE')
    code = f"""{ALONE}
import importlib, importlib.util
import mmattn, mmattn.runs
from mmengine.registry import MODELS
from mmengine.utils import import_modules_from_strings

import_modules_from_strings(['mmattn', 'mmattn.runs', 'mmattn'])
importlib.reload(mmattn)
before = mmattn.attention.se.SE
module = importlib.reload(mmattn.attention.se)
assert MODELS.get('SE') is module.SE is not before
importlib.reload(mmattn.runs.hooks)

# The same file under another name, of which the Python path may hold two.
spec = importlib.util.spec_from_file_location('mmattn.attention.again', module.__file__)
again = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(again)
assert MODELS.get('SE') is again.SE

# Notebooks forget a package to load it afresh.
for name in list(sys.modules):
    if name.partition('.')[0] == 'mmattn' and name != spec.name:
        del sys.modules[name]
import mmattn
assert MODELS.get('SE') is mmattn.attention.SE is not again.SE
print('ours')
import their_fork  # the second: refused by mmengine, which says whose the name is
"""
    done = python(code, tmp_path)
    assert done.stdout == 'ours\n', done.stderr
    last = "KeyError: 'SE is already registered in model at mmattn.attention.se'"
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == last


def _class(name, source, module):
    """A class as `source` defines it; of a file that Python does not know, as at a prompt."""
    scope = {'__name__': module}
    exec(source, scope)
    return scope[name]


def test_in_a_registry():
    registry = Registry('thing', scope='here')
    ours = register(registry)(_class('Thing', 'class Thing: pass', 'one'))
    assert ours.__name__ == 'Thing' and registry.get('Thing') is ours
    # At a prompt the module's name is all there is to know a class by.
    again = register(registry)(_class('Thing', 'class Thing: pass', 'one'))
    assert registry.get('Thing') is again is not ours
    with pytest.raises(RuntimeError) as info:
        register(registry)(_class('Thing', 'class Thing: pass', 'two'))
    where = "here's registry 'thing'"
    assert str(info.value) == message('Thing', 'Thing', where, 'one.Thing (no file)')
    assert registry.get('Thing') is again
    with pytest.raises(RuntimeError, match=r"its Other: the name 'Thing'"):
        register(registry, name='Thing')(_class('Other', 'class Other: pass', 'one'))
    assert registry.get('Other') is None


@pytest.mark.parametrize(
    'taken, said',
    [
        (message, f'test_registry.message ({Path(__file__).resolve()})'),
        (len, 'builtins.len (no file)'),
        (functools.partial(len), 'functools.functools.partial(<built-in function len>) (no file)'),
    ],
    ids=['function', 'built-in', 'partial'],
)
def test_what_is_no_class(taken, said):
    registry = Registry('thing', scope='here')
    registry.register_module(name='Thing', module=taken)
    with pytest.raises(RuntimeError) as info:
        register(registry)(_class('Thing', 'class Thing: pass', 'one'))
    assert str(info.value) == message('Thing', 'Thing', "here's registry 'thing'", said)


def test_every_registration_is_checked():
    direct = [
        str(path.relative_to(ROOT))
        for path in (ROOT / 'mmattn').rglob('*.py')
        if '.register_module(' in path.read_text()
    ]
    assert direct == [os.path.join('mmattn', 'registry.py')]


def test_gates_need_torch_alone(tmp_path):
    """Without mmengine, mmcv or numpy: they train, and only what needs these is missing."""
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'):
            raise ModuleNotFoundError(f'No module named {name!r}')
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == 'mmengine' else found(name, *a)
sys.meta_path.insert(0, Missing())
import torch
import mmattn.attention
from mmattn import SE
x = torch.randn(2, 16, 5, 4, requires_grad=True)
for name in mmattn.attention.__all__:
    getattr(mmattn.attention, name)(16)(x).sum().backward()
assert x.grad.isfinite().all() and not [n for n in sys.modules if n.startswith('mmengine')]
print('trained')
"""
    done = python(code, tmp_path)
    assert done.stdout == 'trained\n', done.stderr
