"""requirements/locked.txt is what the other requirements ask for, each file by its hash."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / 'requirements'


def pins(path):
    """(name, version) of each line that names one exactly, of a file and those it refers to."""
    for line in path.read_text(encoding='utf-8').splitlines():
        if line.startswith('-r '):
            yield from pins(path.with_name(line.removeprefix('-r ').strip()))
        found = re.match(r'([\w.-]+)==([^\s;\\]+)', line)
        if found:
            yield found[1].lower().replace('_', '-'), found[2]


@pytest.mark.parametrize(
    'name', ['build', 'torch', 'openmmlab', 'runtime', 'tests', 'docs', 'visual']
)
def test_what_is_pinned_is_locked(name):
    wanted = set(pins(REQUIREMENTS / f'{name}.txt'))
    assert wanted
    assert wanted <= set(pins(REQUIREMENTS / 'locked.txt'))


@pytest.mark.parametrize('name', ['locked', 'audit'])
def test_every_package_has_a_hash(name):
    text = (REQUIREMENTS / f'{name}.txt').read_text(encoding='utf-8')
    text = re.sub(r'^#.*\n', '', text, flags=re.M).replace('\\\n', ' ')
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) > 20
    for line in lines:
        assert re.fullmatch(r'[\w.-]+==[^\s;]+( ;[^#]*?)?(\s+--hash=sha256:[0-9a-f]{64})+', line)


def test_an_audit_says_what_it_did_not_see():
    summary = runpy.run_path(str(ROOT / 'tools' / 'audit.py'))['summary']
    fault = dict(id='PYSEC-1', fix_versions=['2'], aliases=['CVE-1'], description='')
    fine = dict(name='a', version='1', vulns=[])
    bad = dict(name='b', version='1', vulns=[fault])
    skipped = dict(name='c', skip_reason='not found')

    def said(*packages):
        return summary(json.dumps(dict(dependencies=packages, fixes=[])))

    assert said(fine) == (['1 of 1 packages audited, 0 vulnerabilities'], 0)
    lines, code = said(fine, bad, skipped)
    assert code == 1
    assert lines == [
        'b 1: PYSEC-1 CVE-1; fixed in 2',
        '2 of 3 packages audited (not c), 1 vulnerabilities',
    ]
    for nothing in (said(skipped), summary(''), summary('[]')):
        assert nothing[0][0].startswith('not audited') and nothing[1] == 3


ANSWERS = {
    'fine': (
        'print(\'{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}\')',
        0,
    ),
    'vulnerable': (
        'print(\'{"dependencies": [{"name": "a", "version": "1", "vulns": \'\n'
        '      \'[{"id": "CVE-1", "fix_versions": []}]}]}\'); raise SystemExit(1)',
        1,
    ),
    'silent': ("raise SystemExit('no route to host')", 3),
    'half': ('print(\'{"dependencies": [\')', 3),
    'odd': ('print(\'{"dependencies": [5]}\')', 3),
}


@pytest.mark.parametrize('kind', ANSWERS)
def test_an_audit_of_a_made_up_service(tmp_path, kind):
    """pip-audit's place is taken by a module that answers as it does, or not at all."""
    answer, code = ANSWERS[kind]
    (tmp_path / 'pip_audit.py').write_text(answer)
    ran = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'audit.py', REQUIREMENTS / 'locked.txt'],
        env=dict(os.environ, PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (code, '')
    last = ran.stdout.splitlines()[-1]
    assert last.startswith('not audited: ' if code == 3 else '1 of 1 packages')


def test_an_audit_without_a_network(tmp_path):
    """As where pip-audit itself cannot be had: a Python whose venv fails."""
    tools = tmp_path / 'tools'
    tools.mkdir()
    for name in ('audit.sh', 'audit.py', 'env.sh'):
        (tools / name).write_bytes((ROOT / 'tools' / name).read_bytes())
    python = tmp_path / 'python3'
    python.write_text(f'#!/bin/sh\n[ "$1 $2" = "-m venv" ] && exit 1\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    ran = subprocess.run(
        ['bash', tools / 'audit.sh'],
        env=dict(os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}'),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 3
    assert ran.stdout.startswith('not audited: ') and ran.stdout.count('\n') == 1
