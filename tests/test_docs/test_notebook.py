"""The notebook runs, and stands in the repository with its figures and without a fault."""

import json
import subprocess
import sys

import pytest
from doc_pages import ROOT

pytest.importorskip('mmpretrain')
pytest.importorskip('matplotlib')

PATH = ROOT / 'docs' / 'digits_to_attention.ipynb'
CELLS = json.loads(PATH.read_text(encoding='utf-8'))['cells']
CODE = [cell for cell in CELLS if cell['cell_type'] == 'code']


def source(cell):
    return ''.join(cell['source'])


def test_what_is_committed():
    assert PATH.stat().st_size < 300_000
    outputs = [output for cell in CODE for output in cell['outputs']]
    assert not [output for output in outputs if output['output_type'] == 'error']
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 3
    assert [cell['execution_count'] for cell in CODE] == [*range(1, len(CODE) + 1)]
    assert '/tmp/' not in PATH.read_text() and '/home/' not in PATH.read_text()


def test_links_lead_somewhere():
    import re

    for cell in CELLS:
        for target in re.findall(r'\]\(([^)#]+)', source(cell)):
            if cell['cell_type'] == 'markdown' and '://' not in target:
                assert (PATH.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_cell_runs(checkout, environment):
    """In a process of its own, as a reader's; it learns the digits."""
    last = '\nassert metrics["accuracy/top1"] > 60, metrics\n'
    (checkout / 'cells.py').write_text('\n'.join(map(source, CODE)) + last)
    ran = subprocess.run(
        [sys.executable, '-W', 'ignore', 'cells.py'],
        cwd=checkout,
        env={**environment, 'MPLBACKEND': 'Agg'},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
