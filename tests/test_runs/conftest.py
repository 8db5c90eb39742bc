import pytest

from mmattn.runs import signals


@pytest.fixture(autouse=True)
def asked_nothing():
    """What a test has asked of this process is no later test's."""
    yield
    signals.request.__init__()
