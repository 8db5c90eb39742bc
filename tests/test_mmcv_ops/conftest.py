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


@pytest.fixture
def stand_in(run_on):
    """mmcv.ops runs on the operators of torch and torchvision."""
    run_on(operators)
