import gc
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from mmengine.registry import DefaultScope

# The same examples in every run, and no deadline: a busy machine is not a failing test.
settings.register_profile(
    'mmattn',
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile('mmattn')


def _restored_scope():
    before = DefaultScope._instance_dict.copy()
    yield
    DefaultScope._instance_dict = before


# A config that a test runs sets the default scope of the whole process: it ends with the test, or
# with the module where a fixture of the module set it.
restored_scope = pytest.fixture(autouse=True)(_restored_scope)
module_scope = pytest.fixture(autouse=True, scope='module')(_restored_scope)


@pytest.fixture(autouse=True, scope='module')
def quick_collections():
    """Garbage is not looked for among what libraries have made, which stays.

    Those are a million objects: a fifth of a second each time that mmengine collects garbage, which
    it does with every data set, or Python does.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in a test wherever and after whatever it runs."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def data_where_the_configs_say(monkeypatch):
    """A user's own setting moves no test's data."""
    monkeypatch.delenv('MMATTN_DATA', raising=False)


def pytest_terminal_summary(terminalreporter):
    """Count what was not tested, by reason: a skipped check must not read as a passed one."""
    counts = Counter()
    for report in terminalreporter.stats.get('skipped', ()):
        counts[report.longrepr[2].removeprefix('Skipped: ')] += 1
    if counts:
        terminalreporter.section('not tested here')
        for reason, count in counts.most_common():
            terminalreporter.write_line(f'{count:5} {"test" if count == 1 else "tests"}: {reason}')
