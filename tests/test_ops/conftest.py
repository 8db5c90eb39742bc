import pytest

from mmattn.ops import native


@pytest.fixture(autouse=True)
def kernels_for_small_maps(monkeypatch):
    """The maps of these tests are small: do not leave them to PyTorch."""
    monkeypatch.setattr(native, 'SMALL', 0)
