"""`mmcv._ext` is a real module with a real spec, supplied only where the compiled one is not."""

import _ctypes
import importlib
import importlib.util
import pickle
import pkgutil
import runpy
import subprocess
import sys
import sysconfig
import textwrap
import warnings
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch
import torchvision

import mmattn
from mmattn import mmcv_ops
from mmattn.mmcv_ops import finder, operators

ROOT = Path(__file__).parents[2]
SUFFIX = sysconfig.get_config_var('EXT_SUFFIX')
FINDER = finder.OperatorsFinder()


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    monkeypatch.delenv(finder.VARIABLE, raising=False)


@pytest.fixture
def without(tmp_path):
    """The folder of an mmcv that was installed without operators."""
    return [str(tmp_path)]


@pytest.fixture
def broken(tmp_path):
    """The folder of an mmcv whose extension does not load."""
    (tmp_path / f'_ext{SUFFIX}').write_bytes(b'built for another torch')
    return [str(tmp_path)]


@pytest.fixture
def compiled(tmp_path):
    """The folder of an mmcv whose extension loads, though it is another library."""
    (tmp_path / f'_ext{SUFFIX}').symlink_to(_ctypes.__file__)
    return [str(tmp_path)]


@pytest.fixture
def extension(without):
    """The module, made as `import mmcv._ext` makes it, beside the one that is in use."""
    spec = FINDER.find_spec('mmcv._ext', without)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_first_of_all():
    assert sum(isinstance(entry, finder.OperatorsFinder) for entry in sys.meta_path) == 1
    mmcv_ops.install()
    assert sum(isinstance(entry, finder.OperatorsFinder) for entry in sys.meta_path) == 1
    assert FINDER.find_spec('mmcv') is None and FINDER.find_spec('torch._ext') is None


def test_missing(without):
    spec = FINDER.find_spec('mmcv._ext', without)
    assert spec.name == 'mmcv._ext' and spec.origin.endswith('operators.py')
    assert spec.loader.reason == 'mmcv was installed without compiled operators'


def test_does_not_load(broken):
    spec = FINDER.find_spec('mmcv._ext', broken)
    assert 'do not load' in spec.loader.reason and broken[0] in spec.loader.reason


def test_compiled_is_not_touched(compiled):
    assert PathFinder.find_spec('mmcv._ext', compiled) is not None
    assert FINDER.find_spec('mmcv._ext', compiled) is None


def test_chosen_by_hand(monkeypatch, compiled):
    monkeypatch.setenv(finder.VARIABLE, 'torchvision')
    assert FINDER.find_spec('mmcv._ext', compiled).loader.reason == 'MMATTN_MMCV_OPS=torchvision'
    monkeypatch.setenv(finder.VARIABLE, 'compiled')
    assert FINDER.find_spec('mmcv._ext', compiled) is None
    monkeypatch.setenv(finder.VARIABLE, '')
    assert FINDER.find_spec('mmcv._ext', compiled) is None


def test_compiled_wanted_where_it_is_not(monkeypatch, broken, tmp_path):
    monkeypatch.setenv(finder.VARIABLE, 'compiled')
    with pytest.raises(ImportError, match='=compiled, but .*do not load.*MMCV_WITH_OPS=1 pip'):
        FINDER.find_spec('mmcv._ext', broken)
    with pytest.raises(ImportError, match='=compiled, but .*without compiled operators'):
        FINDER.find_spec('mmcv._ext', [str(tmp_path / 'nothing')])


def test_compiled_wanted_is_said_at_once(monkeypatch):
    pytest.importorskip('mmcv')
    if not _without_compiled():
        pytest.skip('mmcv has compiled operators')
    monkeypatch.setenv(finder.VARIABLE, 'compiled')
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    with pytest.raises(ImportError, match='=compiled, but .*without compiled operators'):
        mmcv_ops.install()
    assert mmcv_ops.in_use().name == 'none'


def test_unknown_choice(monkeypatch, without):
    monkeypatch.setenv(finder.VARIABLE, 'gpu')
    for refused in (mmcv_ops.install, lambda: FINDER.find_spec('mmcv._ext', without)):
        with pytest.raises(ValueError, match="=gpu: must be 'torchvision' or 'compiled'"):
            refused()


def test_choice_that_comes_too_late(monkeypatch):
    monkeypatch.setenv(finder.VARIABLE, 'torchvision')
    monkeypatch.setitem(sys.modules, 'mmcv._ext', torch)
    with pytest.raises(ImportError, match='import mmattn before mmcv.ops, mmdet and mmseg'):
        mmcv_ops.install()


def test_in_use(monkeypatch):
    pytest.importorskip('mmcv.ops')
    using = mmcv_ops.in_use()
    assert using.name in ('compiled', 'torchvision') and using.reason
    assert str(using) == f"mmcv's operators: {using.name} ({using.reason})"
    extension = sys.modules['mmcv._ext']
    assert (using.name == 'torchvision') == isinstance(extension.__loader__, finder.OperatorsLoader)
    assert importlib.util.find_spec('mmcv._ext') is extension.__spec__
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    monkeypatch.delitem(sys.modules, 'mmcv._ext')
    assert mmcv_ops.in_use().name == 'none'


def test_log_of_a_run(tmp_path):
    pytest.importorskip('mmcv.ops')
    from mmattn.runs.runner import Runner

    Runner(model=torch.nn.Linear(1, 1), work_dir=str(tmp_path), experiment_name='operators')
    log = next(tmp_path.rglob('*.log')).read_text()
    assert log.count(str(mmcv_ops.in_use())) == 1


def test_module(extension):
    assert extension.nms is operators.nms and extension.__file__ == operators.__file__
    assert repr(extension) == f"<module 'mmcv._ext' from {operators.__file__!r}>"
    assert pickle.loads(pickle.dumps(extension.nms)) is operators.nms
    assert str(torchvision.__version__) in extension.get_compiler_version()
    assert extension.get_compiling_cuda_version() == (torch.version.cuda or 'not available')


def test_operator_without_counterpart(extension):
    assert hasattr(extension, 'carafe_forward')
    operator = pickle.loads(pickle.dumps(extension.carafe_forward))
    with pytest.raises(NotImplementedError, match="'carafe_forward' has no counter.*MMCV_WITH_OPS"):
        operator(torch.empty(0), scale_factor=2)
    # It is no package, and wraps nothing: Python asks every module such things.
    assert not any(hasattr(extension, name) for name in ('__path__', '__wrapped__', '_private'))


def test_as_python_and_mmengine_look_at_it():
    pytest.importorskip('mmcv.ops')
    if mmcv_ops.in_use().name != 'torchvision':
        pytest.skip('the compiled operators of mmcv are in use')
    from mmcv.utils.env import collect_env

    extension = importlib.import_module('mmcv._ext')
    assert importlib.reload(extension) is extension and extension.nms is operators.nms
    if hasattr(pkgutil, 'find_loader'):  # up to Python 3.13; mmcv calls it
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)
            assert pkgutil.find_loader('mmcv._ext') is extension.__loader__
    assert 'torchvision' in collect_env()['MMCV Compiler']


SCRIPT = """
import sys
sys.modules.update(dict.fromkeys(('mmdet', 'mmpretrain', 'mmseg')))  # they take seconds to import
try:
    import mmcv.ops
except ModuleNotFoundError as error:
    print(error)
import mmattn
import mmcv.ops
from torch.utils.data import DataLoader

if __name__ == '__main__':
    loader = DataLoader([mmcv.ops.nms] * 2, collate_fn=len, num_workers=1,
                        multiprocessing_context='spawn')
    print(sum(loader), sys.modules['mmcv._ext'].__spec__.loader)
"""


def test_spawned_worker(tmp_path, monkeypatch):
    """A worker unpickles the data set, and with it imports mmcv.ops, before anything else.

    But it imports the script first, and so the finder. What mmcv says without has its answer in
    the docs.
    """
    pytest.importorskip('mmcv')
    if not _without_compiled():
        pytest.skip('mmcv has compiled operators')
    (tmp_path / 'train.py').write_text(SCRIPT)
    monkeypatch.setenv('PYTHONPATH', str(Path(mmattn.__path__[0]).parent))
    command = [sys.executable, str(tmp_path / 'train.py')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert '2 <mmattn.mmcv_ops.finder.OperatorsLoader' in done.stdout, done.stderr
    without = "No module named 'mmcv._ext'"
    assert without in done.stdout and without in (ROOT / 'docs' / 'operators.md').read_text()


def test_script_that_imports_mmdet_first(tmp_path, monkeypatch, capsys):
    """`python -m mmattn.mmcv_ops SCRIPT`: mmattn comes first, the script notices nothing."""
    script = tmp_path / 'train.py'
    script.write_text('import sys; print(__name__, sys.argv, sys.path[0])')
    monkeypatch.setattr(sys, 'argv', ['mmcv_ops', str(script), '--epochs', '3'])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    runpy.run_module('mmattn.mmcv_ops', run_name='__main__')
    expected = f'__main__ {[str(script), "--epochs", "3"]} {tmp_path}\n'
    assert capsys.readouterr().out == expected
    monkeypatch.setattr(sys, 'argv', ['mmcv_ops'])
    with pytest.raises(SystemExit, match='usage: python -m mmattn.mmcv_ops SCRIPT'):
        runpy.run_module('mmattn.mmcv_ops', run_name='__main__')


def _without_compiled():
    return PathFinder.find_spec('mmcv._ext', importlib.import_module('mmcv').__path__) is None


def test_nothing_is_imported():
    """Without mmcv the finder costs nothing: it imports no library, and asks for none."""
    code = f"""
        import sys
        sys.modules.update(dict.fromkeys(('mmcv', 'torch', 'torchvision', 'numpy')))
        sys.path.insert(0, {mmattn.mmcv_ops.__path__[0]!r})
        import finder
        finder.install()
        assert finder.in_use().name == 'none'
    """
    subprocess.run([sys.executable, '-c', textwrap.dedent(code)], check=True)
