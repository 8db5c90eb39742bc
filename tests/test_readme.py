"""The README's examples run as printed, and have the gates that it says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
EXAMPLES = re.findall(r'\*\*(mm\w+)\*\*: .*?\n\n<!-- [^\n]* -->\n```python\n(.*?)```', README, re.S)


def test_there_is_an_example_for_each_codebase():
    assert [name for name, _ in EXAMPLES] == ['mmpretrain', 'mmdetection', 'mmsegmentation']


@pytest.mark.parametrize('code', [code for _, code in EXAMPLES], ids=[name for name, _ in EXAMPLES])
def test_example_runs_and_has_its_gates(code, monkeypatch):
    from mmengine.registry import MODELS, DefaultScope

    monkeypatch.chdir(ROOT)
    scope = {}
    with DefaultScope.overwrite_default_scope('mmengine'):  # restores what the example sets
        exec(compile(code, 'README.md', 'exec'), scope)
    assert len(code.strip().splitlines()) <= 14
    gate_type = MODELS.get(re.search(r"type='(CAT|DRTAM|CBAM)'", code).group(1))
    gates = sum(isinstance(module, gate_type) for module in scope['model'].modules())
    # DRTAM: 17 inverted residuals; CAT: 6 + 3 bottlenecks; CBAM: 4 stages
    assert gates == {'DRTAM': 17, 'CAT': 9, 'CBAM': 4}[gate_type.__name__]
