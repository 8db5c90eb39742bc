"""What is installed, what runs and what is broken, on one page to paste into an issue.

    python -m mmattn.doctor    (or, where even that fails, python tools/doctor.py)

Ends with code 1 where something is broken, and says how to mend it. What is merely absent (a GPU, a
compiler, a codebase) is said and is not broken. This file needs Python alone; whatever it imports,
mmattn too, may fail.
"""

import contextlib
import importlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import traceback
import warnings
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Module: the distributions that hold it, the one to install first.
LIBRARIES = dict(
    numpy=('numpy',),
    cv2=(
        'opencv-python-headless',
        'opencv-python',
        'opencv-contrib-python',
        'opencv-contrib-python-headless',
    ),
    torch=('torch',),
    torchvision=('torchvision',),
    triton=('triton', 'pytorch-triton', 'triton-windows'),
    mmengine=('onedl-mmengine', 'mmengine', 'mmengine-lite'),
    mmcv=('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full'),
    mmpretrain=('onedl-mmpretrain', 'mmpretrain'),
    mmdet=('onedl-mmdetection', 'mmdet'),
    mmseg=('onedl-mmsegmentation', 'mmsegmentation'),
)
CODEBASES = ('mmpretrain', 'mmdet', 'mmseg')
# Without these the others are not worth trying: they would only repeat the error.
NEEDS = dict(
    torchvision=('torch',),
    mmengine=('torch',),
    mmattn=('torch', 'mmengine'),
    mmcv=('torch', 'mmengine'),
    **{name: ('torch', 'mmengine', 'mmcv') for name in CODEBASES},
)
# Where the configs expect the data, and what should be in there.
DATA = {
    'data/imagenet': ('train', 'val'),
    'data/coco': ('annotations', 'train2017', 'val2017'),
    'data/VOCdevkit/VOC2007': ('ImageSets', 'JPEGImages', 'Annotations'),
    'data/VOCdevkit/VOC2012': ('ImageSets', 'JPEGImages', 'Annotations'),
    'data/cifar100': ('cifar-100-python',),
}
OPERATORS = (
    'import mmattn before mmcv.ops, mmdet or mmseg (in a config: '
    "custom_imports = dict(imports=['mmattn'])), which puts torchvision's operators there; "
    'MMATTN_MMCV_OPS=torchvision takes them always'
)
# What an import error says, and what mends it; `{dist}` is the distribution that failed.
MENDS = (
    (
        r'operator torchvision::\w+ does not exist',
        'torchvision is not of this torch: install both together, pip install torch torchvision',
    ),
    (r"No module named 'mmcv\._ext'", OPERATORS),
    (
        r'_ext\S*\.so.*undefined symbol|undefined symbol.*_ext',
        "mmcv was compiled for another torch: MMATTN_MMCV_OPS=torchvision takes torchvision's "
        'operators, or compile mmcv again',
    ),
    (r'undefined symbol', 'built for another torch: pip install --force-reinstall {dist}'),
    (r'is used but incompatible', 'install a version that this message allows'),
    (
        r'libGL\.so|libgthread',
        'pip uninstall opencv-python; pip install --force-reinstall opencv-python-headless',
    ),
    (
        r'numpy\.core\.multiarray|_ARRAY_API|NumPy 1\.x|numpy\.dtype size changed',
        "it was built for another NumPy: pip install 'numpy<2', or a newer {dist}",
    ),
    (r"No module named 'pkg_resources'", "pip install 'setuptools<81'"),
    (
        r'lib(cu|nv|nccl|c10|torch|gomp)\S*\.so',
        'a library of torch is missing: pip install --force-reinstall torch torchvision',
    ),
    (r'MMATTN_\w+', 'correct or unset that environment variable'),
)


class Page:
    """The report: a line for each thing, then what is broken."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.broken: dict[str, str] = {}  # what -> mend
        self.bad: set[str] = set()  # modules that do not import

    def say(self, name: str, text: str) -> None:
        self.lines.append(f'{name:<12} {text}')

    def broke(self, what: str, mend: str) -> None:
        self.broken[what] = mend

    def __str__(self) -> str:
        lines = ['mmattn doctor', *self.lines, '']
        if not self.broken:
            return '\n'.join([*lines, 'nothing is broken'])
        lines += [f'broken: {len(self.broken)}']
        for number, (what, mend) in enumerate(self.broken.items(), 1):
            lines += [f'{number}. {what}', f'   mend: {mend}']
        return '\n'.join(lines)


def describe(error: BaseException) -> str:
    """An exception in one line, not too long."""
    text = ' '.join(str(error).split())
    return f'{type(error).__name__}: {text[:300]}'


def command(*args: str) -> str | None:
    """What a program prints, or None where it is not there, fails or hangs."""
    try:
        done = subprocess.run(args, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def installed(module: str) -> bool:
    """Whether a module is there to be imported; a mere folder of that name has no origin."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def place_of(module: str) -> Path:
    """The folder of a module that is installed."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def distributions(module: str) -> list[tuple[str, str]]:
    """(name, version) of the distributions that are installed for a module."""
    found = []
    for name in LIBRARIES[module]:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append((name, metadata.version(name)))
    return found


def numbers(version: str) -> tuple[int, ...]:
    """'2.14.1+cpu' -> (2, 14, 1)."""
    return tuple(int(n) for n in re.findall(r'\d+', version.split('+')[0])[:3])


def mend_of(error: BaseException, module: str) -> str:
    """How to mend a failed import."""
    text = str(error)
    dist = LIBRARIES.get(module, (module,))[0]
    for found, _ in distributions(module) if module in LIBRARIES else ():
        dist = found
    for pattern, mend in MENDS:
        if re.search(pattern, text):
            return mend.format(dist=dist)
    missing = isinstance(error, ModuleNotFoundError) and (error.name or '').split('.')[0]
    if missing and missing != module:
        return f'pip install {LIBRARIES.get(missing, (missing,))[0]}'
    return f'pip install --force-reinstall --no-deps {dist}'


def try_import(page: Page, module: str, *parts: str) -> bool:
    """Import a module and some of its parts; whether that went well."""
    missing = [need for need in NEEDS.get(module, ()) if need in page.bad]
    if missing:
        page.bad.add(module)
        return False
    try:
        for name in (module, *parts):
            importlib.import_module(name)
    except (Exception, SystemExit) as error:
        page.bad.add(module)
        if not any(describe(error) in what for what in page.broken):
            page.broke(f'import {module} fails: {describe(error)}', mend_of(error, module))
        return False
    return True


def system(page: Page) -> None:
    page.say('python', f'{platform.python_version()} ({sys.executable})')
    page.say('system', f'{platform.platform()}, {os.cpu_count()} cores')
    free = shutil.disk_usage('.').free / 1e9
    page.say('disk', f'{free:.1f} GB free in {Path.cwd()}')
    if free < 0.1:
        page.broke(f'{free:.2f} GB left on the disk of {Path.cwd()}', 'make room')
    names = sorted(name for name in os.environ if name.startswith('MMATTN_'))
    page.say('environment', ', '.join(f'{name}={os.environ[name]}' for name in names) or 'none set')


def library(page: Page, module: str, *parts: str) -> None:
    """One line for a library: version, distribution, and whether it imports."""
    if not installed(module):
        page.say(module, 'not installed')
        return
    found = distributions(module)
    good = try_import(page, module, *parts)
    version = getattr(sys.modules.get(module), '__version__', None)
    if found:
        text = ' and '.join(f'{version} ({name})' for name, version in found)
    else:
        text = f'{version or "?"} (from {place_of(module)})'
    page.say(module, text if good else f'{text}: does not import')
    if len(found) > 1 and module != 'cv2':
        names = ' '.join(name for name, _ in found)
        page.broke(
            f'{module} is installed twice, from {text}, one over the other',
            f'pip uninstall {names}, then install one of them',
        )


def own_package(page: Page) -> None:
    """mmattn itself, imported before the codebases as its users do."""
    if not hasattr(sys.modules.get('mmattn'), 'attention'):  # only what `python -m` has imported
        for name in [name for name in sys.modules if name.split('.')[0] == 'mmattn']:
            del sys.modules[name]
    if not installed('mmattn'):
        page.say('mmattn', 'not installed')
        page.bad.add('mmattn')
        page.broke(
            'mmattn is not importable here',
            'pip install -e . in the checkout, or PYTHONPATH',
        )
        return
    root = place_of('mmattn')
    scope: dict[str, object] = {}
    with contextlib.suppress(OSError):
        exec((root / 'version.py').read_text(), scope)
    commit = command('git', '-C', str(root), 'describe', '--always', '--dirty')
    commit = f', commit {commit.strip()}' if commit and (root.parent / '.git').exists() else ''
    good = try_import(page, 'mmattn')
    text = f'{scope.get("__version__", "?")}{commit} ({root})'
    page.say('mmattn', text if good else f'{text}: does not import')
    page.lines.insert(0, page.lines.pop())  # what the page is about comes first


def libraries(page: Page) -> None:
    for module in ('numpy', 'cv2', 'torch', 'torchvision', 'triton', 'mmengine'):
        library(page, module)
    if not installed('torch'):
        page.bad.add('torch')
        page.broke('torch is not installed', 'pip install torch torchvision')
    if not installed('mmengine'):
        page.bad.add('mmengine')
        page.broke('mmengine is not installed', f'pip install {LIBRARIES["mmengine"][0]}')
    torchvision_fits(page)
    own_package(page)
    library(page, 'mmcv')
    for module in CODEBASES:
        library(page, module, f'{module}.models', f'{module}.datasets', f'{module}.evaluation')


def torchvision_fits(page: Page) -> None:
    """Whether torchvision's own metadata allow the torch that is installed."""
    torch, vision = distributions('torch'), distributions('torchvision')
    if not torch or not vision:
        return
    asked = ' '.join(r for r in metadata.requires('torchvision') or () if re.match(r'torch\b', r))
    found = re.search(r'(==|>=)\s*([\w.]+)', asked)
    if not found:
        return
    sign, wanted = found.groups()
    has, wants = numbers(torch[0][1])[:2], numbers(wanted)[:2]
    if has != wants if sign == '==' else has < wants:
        page.broke(
            f'torchvision {vision[0][1]} is made for torch{sign}{wanted}, here is {torch[0][1]}',
            f'pip install torch=={torch[0][1].split("+")[0]} torchvision, together',
        )


def gpu(page: Page) -> None:
    """The GPU, its driver, and whether torch gets at it."""
    table = command('nvidia-smi')
    names = command('nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader')
    driver = re.search(r'CUDA (?:\w+ )?Version:\s*(\d+)\.(\d+)', table or '')
    runs = driver and f'{driver[1]}.{driver[2]}'
    if names:
        gpus = [
            ' driver '.join(part.strip() for part in line.split(','))
            for line in names.split('\n')
            if line
        ]
        text = f'{"; ".join(dict.fromkeys(gpus))} ({len(gpus)} there, for CUDA up to {runs})'
    else:
        text = 'no nvidia-smi' if shutil.which('nvidia-smi') is None else 'nvidia-smi fails'
    if 'torch' in page.bad:
        page.say('GPU', text)
        return
    import torch

    cuda = torch.version.cuda
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        sees = torch.cuda.is_available()
    if sees:
        count = torch.cuda.device_count()
        name, capability = torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0)
        page.say('GPU', f'{text}; torch sees {count} x {name}, sm_{capability[0]}{capability[1]}')
        return
    page.say('GPU', f'{text}; torch sees none')
    hidden = os.environ.get('CUDA_VISIBLE_DEVICES')
    if not names or cuda is None or (hidden is not None and not re.match(r'\d|GPU|MIG', hidden)):
        return
    if driver and int(driver[1]) < int(cuda.split('.')[0]):
        page.broke(
            f'the driver is too old for this torch: it runs CUDA up to {runs}, torch has {cuda}',
            f'a newer driver, or a torch for CUDA {driver[1]} (pip install torch torchvision '
            f'--index-url https://download.pytorch.org/whl/cuNNN)',
        )
    else:
        why = ' '.join(str(said[0].message).split())[:200] if said else 'it does not say why'
        page.broke(
            f'nvidia-smi shows a GPU and torch does not see it: {why}',
            'python -c "import torch; torch.cuda.init()" says more; a new start of the machine '
            'or a driver that fits helps most often',
        )


def torch_build(page: Page) -> None:
    if 'torch' in page.bad:
        return
    import torch

    cuda = torch.version.cuda or (torch.version.hip and f'ROCm {torch.version.hip}')
    page.say('CUDA', f'torch is built for {cuda or "the CPU alone"}')


def compiler(page: Page) -> None:
    """As `mmattn.ops.native.build` looks for it."""
    names = [os.environ['CXX']] if os.environ.get('CXX') else ['c++', 'g++']
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        page.say('compiler', f'none called {" or ".join(names)}')
        return
    version = (command(found, '--version') or 'does not run').split('\n')[0]
    page.say('compiler', f'{found}: {version}')


def operators(page: Page) -> None:
    """Which operators `mmcv.ops` runs on."""
    if not installed('mmcv') or 'mmcv' in page.bad:
        page.say('operators', 'no mmcv')
        return
    try:
        file = getattr(importlib.import_module('mmcv._ext'), '__file__', None) or ''
        importlib.import_module('mmcv.ops')
    except Exception as error:
        page.say('operators', f'mmcv.ops: none ({describe(error)})')
        # Classifiers do without, and mmcv-lite has none on purpose.
        if installed('mmdet') and not any(describe(error) in what for what in page.broken):
            page.broke(f"mmcv's operators are missing: {describe(error)}", mend_of(error, 'mmcv'))
        return
    page.say('operators', _whose(file))
    if not file.endswith(('.so', '.pyd')):
        page.say(
            '', '(a script that says "No module named \'mmcv._ext\'" must import mmattn first)'
        )


def _whose(file: str) -> str:
    try:
        from mmattn.mmcv_ops import in_use
    except ImportError:
        return f'mmcv.ops runs on {file}'
    return str(in_use())


def kernels(page: Page) -> None:
    """Which devices run kernels, and why not the others."""
    if 'mmattn' in page.bad:
        page.say('kernels', 'not tried, as mmattn does not import')
        return
    import torch

    from mmattn.ops import dispatch
    from mmattn.ops.native import build

    if dispatch.get_impl() == 'reference':
        page.say('kernels', 'the equations everywhere (MMATTN_IMPL=reference)')
        return
    if os.environ.get('MMATTN_NATIVE') == '0':
        page.say('CPU kernels', 'the equations (MMATTN_NATIVE=0)')
    else:
        build.library.cache_clear()  # to hear its warning, whoever has asked before
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            lib = build.library()
        why = ' '.join(str(w.message) for w in said)
        why = re.sub(r'.*has no kernels \((.*)\)\. They need.*', r'\1', why, flags=re.DOTALL)
        if lib is not None:
            page.say('CPU kernels', 'compiled')
        else:
            page.say('CPU kernels', f'the equations, slower: {" ".join(why.split())[:200]}')
            if not why.startswith('no compiler'):
                page.broke(
                    f'the CPU kernels do not build: {" ".join(why.split())[:200]}',
                    'another compiler (CXX=g++-12, say) or a cache folder to write to '
                    '(XDG_CACHE_HOME); MMATTN_NATIVE=0 does without them',
                )
    if not torch.cuda.is_available():
        page.say('GPU kernels', 'no GPU for them')
    elif dispatch.backend('cuda').works(torch.device('cuda')):
        page.say('GPU kernels', 'Triton')
        self_checks(page, torch.device('cuda'))
    else:
        page.say('GPU kernels', f'the equations, slower: {_no_triton(torch)}')


def self_checks(page: Page, device: 'torch.device') -> None:
    """The verdicts that are kept of this GPU's kernels (`mmattn.ops.triton.selfcheck`)."""
    from mmattn.ops.triton import selfcheck

    if os.environ.get('MMATTN_SELFCHECK') == '0':
        page.say('self-checks', 'not made (MMATTN_SELFCHECK=0)')
        return
    here = selfcheck.describe(device)
    found = [v for v in selfcheck.verdicts() if here.items() <= v.items()]
    page.say('self-checks', ', '.join(f'{value}' for value in here.values()))
    for good, word in ((True, 'passed'), (False, 'FAILED')):
        names = [f'{v["op"]} in {v["dtype"]}' for v in found if (v['problem'] is None) == good]
        if names:
            page.say('', f'{word}: {", ".join(names)}')
    if not found:
        page.say('', 'none yet: each operator is checked at its first use')
    for verdict in found:
        if verdict['problem'] is not None:
            page.broke(
                f'the Triton kernels of {verdict["op"]!r} in {verdict["dtype"]} failed their '
                f'self-check: {verdict["problem"]}',
                'report this page, please; until then its equations run, and deleting '
                f'{selfcheck.folder()} has it checked again',
            )


def _no_triton(torch: ModuleType) -> str:
    if torch.version.cuda is None or torch.cuda.get_device_capability() < (8, 0):
        return 'they need a CUDA GPU of compute capability 8.0 or more'
    if os.environ.get('TRITON_INTERPRET') == '1':
        return 'TRITON_INTERPRET=1'
    try:
        importlib.import_module('mmattn.ops.triton.scale')
    except Exception as error:
        return describe(error)
    return 'Triton does not run here'


def data(page: Page) -> None:
    """The data sets, where the configs look for them."""
    found, gone = [], []
    for folder, parts in DATA.items():
        lacks = [part for part in parts if not Path(folder, part).exists()]
        if not Path(folder).is_dir():
            gone.append(folder)
        else:
            found.append(f'{folder} (without {", ".join(lacks)})' if lacks else folder)
    page.say('data', f'{", ".join(found) or "none"}; not here: {", ".join(gone) or "none"}')


def self_test(page: Page) -> None:
    """Runs what is there on tiny inputs with known answers."""
    if 'mmattn' in page.bad:
        page.say('self-test', 'not run, as mmattn does not import')
        return
    from mmattn.analysis import selftest

    codebases = [name for name in CODEBASES if installed(name) and name not in page.bad]
    for name, test in selftest.tests(codebases):
        try:
            page.say(name, test())
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            page.say(name, 'FAILED')
            page.broke(
                f'{name}: {describe(error)} ({Path(frame.filename).name}:{frame.lineno})',
                getattr(error, 'mend', 'report this page, please'),
            )


PROBES = (system, libraries, torch_build, gpu, compiler, operators, kernels, data, self_test)


def examine() -> Page:
    """Everything above on one page; what fails is on it too.

    Returns:
        Page
    """
    page = Page()
    for probe in PROBES:
        # What libraries print and warn of while they are imported is not for the page.
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter('ignore')
            try:
                probe(page)
            except Exception as error:
                frame = traceback.extract_tb(error.__traceback__)[-1]
                page.broke(
                    f'the doctor fails at {probe.__name__}, line {frame.lineno}: {describe(error)}',
                    'report this page, please',
                )
    return page


def main() -> None:
    page = examine()
    print(page)
    sys.stdout.flush()
    sys.exit(bool(page.broken))


if __name__ == '__main__':
    main()
