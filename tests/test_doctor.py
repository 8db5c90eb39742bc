"""The report, in made-up situations: what is broken gives code 1 and says how to mend it."""

import importlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from mmattn import doctor
from mmattn.analysis import selftest
from mmattn.ops import reference
from mmattn.ops.native import build
from mmattn.runs import checkpoint

ROOT = Path(__file__).parents[1]
MODULE = ('-m', 'mmattn.doctor')
CODEBASES = ('mmcv', 'mmdet', 'mmpretrain', 'mmseg')
TOOL = (str(ROOT / 'tools' / 'doctor.py'),)


def run(command, *folders, cwd=None, **environment):
    """The report of a fresh process that finds `folders` before everything installed."""
    path = os.pathsep.join(map(str, (*folders, ROOT, *os.environ.get('PYTHONPATH', '').split(':'))))
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


def fake(folder, module, text):
    """A package of that name that is found first."""
    (folder / module).mkdir()
    (folder / module / '__init__.py').write_text(text)
    return folder


def hide(folder, *modules):
    """Not installed, as far as a fresh process can see."""
    (folder / 'sitecustomize.py').write_text(
        'import sys\n'
        'class Hidden:\n'
        '    def find_spec(name, path=None, target=None):\n'
        f"        if name.split('.')[0] in {modules}:\n"
        '            raise ModuleNotFoundError(f"No module named {name!r}", name=name)\n'
        'sys.meta_path.insert(0, Hidden)\n'
    )


@pytest.fixture
def page():
    return doctor.Page()


def row(page, name):
    return next(line for line in page.lines if line.startswith(name))


def only_broken(page):
    ((what, mend),) = page.broken.items()
    return what, mend


def test_nothing_is_broken_here(tmp_path):
    ran = run(MODULE, cwd=tmp_path)
    lines = ran.stdout.splitlines()
    assert (ran.returncode, ran.stderr) == (0, ''), ran.stdout
    assert len(lines) <= 40
    assert lines[-1] == 'nothing is broken'
    names = [line.split()[0] for line in lines if line.strip()]
    for name in ('python', 'mmattn', *doctor.LIBRARIES, 'GPU', 'operators', 'NMS', 'checkpoint'):
        assert name in names


@pytest.mark.parametrize('command', (MODULE, TOOL), ids=('module', 'tool'))
def test_torch_does_not_import(command, tmp_path):
    fake(tmp_path, 'torch', "raise OSError('libcudart.so.13: cannot open shared object file')")
    ran = run(command, tmp_path)
    assert (ran.returncode, ran.stderr) == (1, '')
    assert ran.stdout.count('libcudart.so.13') == 1, 'said once, not by everybody who needs torch'
    assert 'mend: a library of torch is missing: pip install --force-reinstall torch' in ran.stdout


def test_mmattn_does_not_import(tmp_path):
    hide(tmp_path, *CODEBASES)
    ran = run(MODULE, tmp_path, MMATTN_IMPL='fastest')
    assert (ran.returncode, ran.stderr) == (1, '')
    assert 'import mmattn fails: ValueError: environment variable MMATTN_IMPL' in ran.stdout
    assert 'mend: correct or unset that environment variable' in ran.stdout
    assert 'environment  MMATTN_IMPL=fastest' in ran.stdout


def test_torch_alone(tmp_path):
    """As after `pip install torch`, the rest hidden."""
    hide(tmp_path, 'numpy', 'cv2', 'torchvision', 'mmengine', *CODEBASES)
    ran = run(MODULE, tmp_path)
    assert (ran.returncode, ran.stderr) == (1, '')
    assert 'broken: 1\n' in ran.stdout, ran.stdout
    assert 'mmengine is not installed' in ran.stdout
    assert 'mend: pip install onedl-mmengine' in ran.stdout


def test_nothing_but_python(tmp_path):
    """No torch, no site-packages: the tool alone."""
    ran = subprocess.run(
        [sys.executable, '-I', '-S', *TOOL], cwd=tmp_path, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (1, '')
    assert 'torch is not installed' in ran.stdout
    assert 'mend: pip install torch torchvision' in ran.stdout


@pytest.mark.parametrize(
    'module, error, mend',
    [
        (
            'torchvision',
            RuntimeError('operator torchvision::nms does not exist'),
            'pip install torch torchvision',
        ),
        (
            'mmdet',
            ModuleNotFoundError("No module named 'mmcv._ext'", name='mmcv._ext'),
            'import mmattn before mmcv.ops, mmdet or mmseg',
        ),
        (
            'mmcv',
            ImportError('mmcv/_ext.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZN3c10'),
            'MMATTN_MMCV_OPS=torchvision',
        ),
        (
            'mmdet',
            AssertionError('MMCV==2.2.0 is used but incompatible. Please install mmcv<2.2.0'),
            'install a version that this message allows',
        ),
        (
            'cv2',
            ImportError('libGL.so.1: cannot open shared object file'),
            'opencv-python-headless',
        ),
        ('mmcv', ImportError('numpy.core.multiarray failed to import'), "'numpy<2'"),
        (
            'mmengine',
            ModuleNotFoundError("No module named 'pkg_resources'", name='pkg_resources'),
            "'setuptools<81'",
        ),
        (
            'mmseg',
            ModuleNotFoundError("No module named 'ftfy'", name='ftfy'),
            'pip install ftfy',
        ),
        ('mmseg', SyntaxError('invalid syntax'), 'pip install --force-reinstall --no-deps'),
    ],
)
def test_a_library_does_not_import(page, monkeypatch, module, error, mend):
    def import_module(name):
        raise error

    monkeypatch.setattr(doctor.importlib, 'import_module', import_module)
    doctor.library(page, module)
    what, how = only_broken(page)
    assert what.startswith(f'import {module} fails: ') and mend in how
    assert row(page, module).endswith('does not import')


def test_absent_is_not_broken(page, monkeypatch):
    monkeypatch.setattr(doctor, 'find_spec', lambda name: None)
    for module in ('mmdet', 'mmseg', 'torchvision', 'triton'):
        doctor.library(page, module)
        assert row(page, module).endswith('not installed')
    assert not page.broken


@pytest.mark.parametrize(
    'torch_version, asked, broken',
    [
        ('2.14.1+cu130', 'torch (==2.13.0)', True),
        ('2.13.1', 'torch==2.13.0', False),
        ('2.8.0', 'torch (>=2.14.0)', True),
        ('2.15.0', 'torch>=2.14.0', False),
    ],
)
def test_torchvision_of_another_torch(page, monkeypatch, torch_version, asked, broken):
    versions = dict(torch=torch_version, torchvision='0.28.0')
    monkeypatch.setattr(doctor, 'distributions', lambda name: [(name, versions[name])])
    monkeypatch.setattr(doctor.metadata, 'requires', lambda name: ['numpy', asked])
    doctor.torchvision_fits(page)
    assert bool(page.broken) == broken
    if broken:
        what, mend = only_broken(page)
        assert 'torchvision 0.28.0 is made for torch' in what
        assert mend == f'pip install torch=={torch_version.split("+")[0]} torchvision, together'


def test_installed_twice(page, monkeypatch):
    both = [('onedl-mmengine', '0.10.12'), ('mmengine', '0.10.7')]
    monkeypatch.setattr(doctor, 'distributions', lambda name: both)
    doctor.library(page, 'mmengine')
    what, mend = only_broken(page)
    assert '0.10.12 (onedl-mmengine) and 0.10.7 (mmengine)' in what
    assert mend.startswith('pip uninstall onedl-mmengine mmengine')


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A made-up GPU with a driver for CUDA up to 12.4, which torch does not see."""
    path = tmp_path / 'nvidia-smi'
    path.write_text(
        '#!/bin/sh\n[ -z "$1" ] && echo "| Driver Version: 550.54.14   CUDA Version: 12.4  |" ||\n'
        'echo "NVIDIA A100-SXM4-80GB, 550.54.14"\n'
    )
    path.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    return path


def test_driver_too_old(page, nvidia_smi, monkeypatch):
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    doctor.gpu(page)
    what, mend = only_broken(page)
    assert 'runs CUDA up to 12.4, torch has 13.0' in what and 'a torch for CUDA 12' in mend
    assert 'NVIDIA A100-SXM4-80GB driver 550.54.14' in row(page, 'GPU')


def test_torch_does_not_see_the_gpu(page, nvidia_smi, monkeypatch):
    def is_available():
        warnings.warn('CUDA initialization: system not yet initialized', stacklevel=1)
        return False

    monkeypatch.setattr(torch.version, 'cuda', '12.1')
    monkeypatch.setattr(torch.cuda, 'is_available', is_available)
    doctor.gpu(page)
    what, mend = only_broken(page)
    assert 'system not yet initialized' in what and 'torch.cuda.init()' in mend


@pytest.mark.parametrize('why', ('hidden', 'cpu build', 'no driver'))
def test_no_gpu_is_not_broken(page, nvidia_smi, monkeypatch, why):
    monkeypatch.setattr(torch.version, 'cuda', None if why == 'cpu build' else '13.0')
    if why == 'hidden':
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    elif why == 'no driver':
        nvidia_smi.write_text('#!/bin/sh\nexit 9\n')
    doctor.gpu(page)
    assert 'torch sees none' in row(page, 'GPU') and not page.broken


@pytest.fixture
def fresh_library():
    """The library is looked for anew, in the test and after it."""
    build.library.cache_clear()
    yield
    build.library.cache_clear()


def test_no_compiler_is_not_broken(page, monkeypatch, fresh_library):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    doctor.compiler(page)
    doctor.kernels(page)
    assert row(page, 'compiler').endswith('none called no-such-compiler')
    assert 'the equations, slower: no compiler called no-such' in row(page, 'CPU kernels')
    assert not page.broken


def test_compiler_that_fails(page, monkeypatch, tmp_path, fresh_library):
    compiler = tmp_path / 'c++'
    compiler.write_text('#!/bin/sh\necho "cannot find cc1plus" >&2; exit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv('CXX', str(compiler))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    doctor.kernels(page)
    what, mend = only_broken(page)
    assert 'cannot find cc1plus' in what and 'MMATTN_NATIVE=0' in mend


def test_kernels_unwanted(page, monkeypatch):
    monkeypatch.setenv('MMATTN_NATIVE', '0')
    doctor.kernels(page)
    assert row(page, 'CPU kernels').endswith('the equations (MMATTN_NATIVE=0)')
    assert not page.broken


def test_self_checks(page, monkeypatch, tmp_path):
    from mmattn.ops.triton import selfcheck

    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    about = dict(device='Made Up 100, sm_90', driver='570', triton='3.8', torch='2', source='s')
    monkeypatch.setattr(selfcheck, 'describe', lambda device: about)
    doctor.self_checks(page, None)
    assert row(page, 'self-checks').endswith('Made Up 100, sm_90, 570, 3.8, 2, s')
    assert 'none yet' in str(page)
    page.lines.clear()
    selfcheck.folder().mkdir(parents=True)
    for number, more in enumerate(
        (
            dict(op='se', problem=None),
            dict(op='cat', problem='y is off by 0.5'),
            dict(op='eca', problem=None, driver='550'),
        )
    ):
        verdict = {**about, 'dtype': 'bfloat16', **more}
        (selfcheck.folder() / f'{number}.json').write_text(json.dumps(verdict))
    doctor.self_checks(page, None)
    assert 'passed: se in bfloat16\n' in str(page)
    assert 'FAILED: cat in bfloat16\n' in str(page)
    what, mend = only_broken(page)
    assert 'y is off by 0.5' in what and 'report this page' in mend


def test_operators_missing(page, monkeypatch):
    pytest.importorskip('mmdet')
    monkeypatch.setitem(sys.modules, 'mmcv._ext', None)  # as if it were not there
    doctor.operators(page)
    what, mend = only_broken(page)
    assert "mmcv's operators are missing" in what
    assert 'mmcv.ops: none' in row(page, 'operators') and mend


def test_kernels_that_differ(page, monkeypatch):
    coord_scale = reference.coord_scale
    monkeypatch.setattr(reference, 'coord_scale', lambda *args: coord_scale(*args) * 1.01)
    monkeypatch.setattr(
        selftest, 'tests', lambda codebases: [('gates cpu', lambda: selftest.gates('cpu'))]
    )
    if build.library() is None:
        pytest.skip('no kernels to compare')
    doctor.self_test(page)
    what, mend = only_broken(page)
    assert 'kernels differ from the equations' in what
    assert 'MMATTN_IMPL=reference' in mend and '(CoordAttention)' in mend


@pytest.mark.parametrize('faulty', ('wrong', 'raises'))
def test_nms_fails(page, monkeypatch, faulty):
    ops = pytest.importorskip('torchvision.ops')

    def nms(boxes, scores, threshold):
        if faulty == 'raises':
            raise RuntimeError("could not run 'torchvision::nms' with arguments from 'CUDA'")
        return torch.arange(len(boxes))

    monkeypatch.setattr(ops, 'nms', nms)
    monkeypatch.setattr(selftest, 'tests', lambda codebases: [('NMS', selftest.all_nms)])
    doctor.self_test(page)
    what, mend = only_broken(page)
    assert what.startswith('NMS: SelfTestError: torchvision on cpu') and mend
    assert row(page, 'NMS').endswith('FAILED')


def test_checkpoints_that_do_not_load(page, monkeypatch):
    """As with OpenMMLab's mmengine 0.10.7, which leaves `weights_only` to torch 2.6 and newer."""
    checkpoint.uninstall()  # tools that other tests ran here read checkpoints themselves
    load, serialization = torch.load, torch.serialization

    def load_weights(file, **options):
        # OneDL's mmengine names its class as a safe one.
        safe = serialization.get_safe_globals()
        serialization.clear_safe_globals()
        try:
            return load(file, **{**options, 'weights_only': True})
        finally:
            serialization.add_safe_globals(safe)

    monkeypatch.setattr(torch, 'load', load_weights)
    monkeypatch.setattr(selftest, 'tests', lambda codebases: [('checkpoint', selftest.checkpoint)])
    doctor.self_test(page)
    what, mend = only_broken(page)
    assert 'mmengine does not load its own checkpoints' in what and 'onedl-mmengine' in mend


def test_a_host_without_gates(page, monkeypatch):
    registry = importlib.import_module('mmpretrain.registry').MODELS
    plain = registry.build(dict(type='ResNet', depth=18))
    monkeypatch.setattr(registry, 'build', lambda cfg: plain)
    monkeypatch.setattr(
        selftest, 'tests', lambda codebases: [('hosts', lambda: selftest.host('mmpretrain'))]
    )
    doctor.self_test(page)
    assert "0 gates in mmpretrain's ResNet-18" in only_broken(page)[0]


def test_data(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data' / 'imagenet' / 'train').mkdir(parents=True)
    for part in doctor.DATA['data/coco']:
        (tmp_path / 'data' / 'coco' / part).mkdir(parents=True)
    doctor.data(page)
    text = row(page, 'data')
    assert 'data/imagenet (without val), data/coco; not here: data/VOCdevkit/VOC2007' in text
    assert not page.broken


def test_a_probe_that_fails(monkeypatch, capsys):
    def strange(page):
        raise LookupError('a machine nobody has thought of')

    monkeypatch.setattr(doctor, 'PROBES', (strange, doctor.system))
    with pytest.raises(SystemExit) as ended:
        doctor.main()
    said = capsys.readouterr().out
    assert ended.value.code == 1
    assert 'the doctor fails at strange' in said and 'report this page' in said
    assert 'python ' in said, 'the other probes go on'


def test_full_disk(page, monkeypatch):
    usage = doctor.shutil.disk_usage('.')._replace(free=10**6)
    monkeypatch.setattr(doctor.shutil, 'disk_usage', lambda path: usage)
    doctor.system(page)
    assert only_broken(page)[1] == 'make room'
