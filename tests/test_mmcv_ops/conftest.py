import sys

import pytest
import torch

from mmattn.mmcv_ops import operators


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run_on(monkeypatch):
    """`run_on(extension)` lets mmcv.ops call that module, whichever is in use elsewhere."""
    pytest.importorskip('mmcv.ops')

    def run_on(extension):
        for name, module in sys.modules.items():
            if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
                monkeypatch.setattr(module, 'ext_module', extension)

    return run_on


@pytest.fixture(params=['cpu', 'cuda'])
def stand_in(request, run_on):
    """mmcv.ops runs on the operators of torch and torchvision, once on each device."""
    if request.param == 'cuda' and not torch.cuda.is_available():
        pytest.skip('needs a GPU')
    run_on(operators)
    torch.set_default_device(request.param)
    yield
    torch.set_default_device(None)
