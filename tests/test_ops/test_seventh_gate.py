"""A gate with a kernel of its own is one room: CONTRIBUTING.md's steps, followed in `seventh_gate`.

It is copied to where it would be a user's package, and nothing else knows of it.
"""

import copy
import importlib
import shutil
import sys
from pathlib import Path

import pytest
import torch
from needs import needs_kernels
from nodes import nodes
from test_compile import targets_of
from torch.library import opcheck

from mmattn import ops
from mmattn.ops import dispatch

pytestmark = needs_kernels
LAYOUTS = dict(contiguous=torch.contiguous_format, channels_last=torch.channels_last)


@pytest.fixture(scope='module')
def room(tmp_path_factory):
    folder = tmp_path_factory.mktemp('theirs')
    shutil.copytree(Path(__file__).with_name('seventh_gate'), folder / 'their_gate')
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module('their_gate')
    finally:
        sys.path.remove(str(folder))
        ops.decompositions.pop(torch.ops.mmattn.energy_gate.default, None)


def made(dtype=torch.float64, layout='contiguous', shape=(2, 3, 5, 7)):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()


def test_a_config_builds_it(room):
    registry = pytest.importorskip('mmengine.registry')
    assert isinstance(
        registry.MODELS.build(dict(type='EnergyGate', in_channels=3)), room.EnergyGate
    )


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(
    'dtype', (torch.float64, torch.float32, torch.bfloat16, torch.float16), ids=str
)
def test_kernels_are_the_equations(room, dtype, layout):
    gate = room.EnergyGate(3)
    results = []
    for kind, impl in ((dtype, 'fast'), (torch.float64, 'reference')):
        gate.impl = impl
        x = made(dtype, layout).detach().to(kind).requires_grad_()
        y = gate(x)
        assert ('energy_gateBackward' in nodes(y)) == (impl == 'fast')
        assert y.is_contiguous(memory_format=LAYOUTS[layout])
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    slack = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=slack[dtype], atol=slack[dtype])


def test_opcheck_and_gradcheck(room):
    op = torch.ops.mmattn.energy_gate.default
    for layout in LAYOUTS:
        opcheck(op, (made(layout=layout), 1e-4))
        assert torch.autograd.gradcheck(room.EnergyGate(3), made(layout=layout))


def test_transforms(room):
    gate, x = room.EnergyGate(3), made().detach()
    _, tangent = torch.func.jvp(gate, (x,), (torch.ones_like(x),))
    gate.impl = 'reference'
    torch.testing.assert_close(tangent, torch.func.jvp(gate, (x,), (torch.ones_like(x),))[1])


def test_compiled_and_exported(room):
    torch._dynamo.reset()
    gate, x = room.EnergyGate(3), made()
    compiled = torch.compile(copy.deepcopy(gate), backend='aot_eager', fullgraph=True)
    for module in (gate, compiled):
        y = module(x)
        assert torch.equal(y, gate(x))
        torch.testing.assert_close(
            torch.autograd.grad(y.sum(), x), torch.autograd.grad(gate(x).sum(), x)
        )
    program = torch.export.export(gate, (x.detach(),))
    assert any('mmattn.energy_gate' in target for target in targets_of(program))
    plain = program.run_decompositions(ops.decompositions)
    assert not any('mmattn' in target for target in targets_of(plain))
    torch.testing.assert_close(plain.module()(x.detach()), gate(x).detach())


def test_where_it_has_no_kernel_its_equations_run(room, monkeypatch):
    """On another device, or of a user without a compiler."""
    gate, x = room.EnergyGate(3), made()
    y = gate(x)
    monkeypatch.setattr(room.operator.native, 'added', lambda source: False)
    assert dispatch.runs_kernels(x)
    plain = gate(x)
    assert 'energy_gateBackward' not in nodes(plain)
    torch.testing.assert_close(plain, y)
    with torch.inference_mode():
        torch.testing.assert_close(gate(x), y)


def test_a_file_that_does_not_compile_is_an_error(tmp_path):
    from mmattn.ops.native import build

    source = tmp_path / 'wrong.cpp'
    source.write_text('#include "abi.h"\nnonsense;\n')
    with pytest.raises(RuntimeError, match='nonsense'):
        build.added(source)


def test_the_room_is_all_there_is():
    """Nothing of the house knows this gate's name."""
    house = Path(ops.__file__).parents[1]
    for path in house.rglob('*'):
        if path.suffix in ('.py', '.cpp', '.h'):
            assert 'energy_gate' not in path.read_text(encoding='utf-8').lower(), path
