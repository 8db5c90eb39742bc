import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Toy layers gain nothing from threads, and lose much when the tests run in parallel."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
