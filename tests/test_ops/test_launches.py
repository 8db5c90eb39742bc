"""How many launches an operator takes on a GPU, and the machine code that they are of."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip('triton', reason='Triton does not come with this build of PyTorch')
from mmattn.analysis import launches, machine_code  # noqa: E402
from mmattn.ops import examples  # noqa: E402

TOOL = Path(__file__).parents[2] / 'tools/analysis_tools/gpu_model.py'
SHAPE = (8, 256, 56, 56)
# Forward and backward: all launches, those of Triton. Fewer are welcome: write them here.
LAUNCHES = dict(
    se=((3, 4), (3, 4)),
    eca=((3, 4), (3, 3)),
    cbam=((6, 7), (6, 7)),
    coord=((4, 5), (4, 5)),
    cat=((5, 6), (5, 6)),
    drtam=((8, 10), (8, 10)),
)
# Reads and writes of the map, in its own size. Vectors and partial results add a little, here most.
MAPS = dict(se=(3, 4), eca=(3, 4), cbam=(4, 5), coord=(3, 4), cat=(4, 5), drtam=(3, 4))


@pytest.mark.parametrize('op', LAUNCHES)
def test_launches(op):
    counts = launches.count(op, SHAPE)
    parts = counts.forward, counts.backward
    ours = [[one for one in part if one.name.endswith('_kernel')] for part in parts]
    assert (tuple(map(len, parts)), tuple(map(len, ours))) == LAUNCHES[op], parts


@pytest.mark.parametrize(
    'op, shape, last, found',
    (
        # A sum over channels in parts, where rows are too few for so many programs.
        ('cbam', SHAPE, False, (7, 7)),
        ('cbam', (256, 256, 56, 56), False, (6, 7)),
        # The weights' gradients in groups of samples, which a call of PyTorch adds up.
        ('coord', (256, 256, 56, 56), True, (4, 6)),
    ),
)
def test_launches_that_a_shape_adds(op, shape, last, found):
    assert tuple(map(len, launches.count(op, shape, last=last))) == found


def by_running_statistics(make):
    def made(maker):
        *args, _, eps, a = make(maker)
        return *args, False, eps, a

    return made


@pytest.mark.parametrize('op, found', (('cbam', (5, 7)), ('coord', (4, 5))))
def test_launches_by_running_statistics(op, found, monkeypatch):
    monkeypatch.setitem(examples.ARGUMENTS, op, by_running_statistics(examples.ARGUMENTS[op]))
    assert tuple(map(len, launches.count(op, SHAPE))) == found


@pytest.mark.parametrize('op', LAUNCHES)
def test_bytes(op):
    """Of a map so large that vectors weigh little."""
    shape = (256, 256, 112, 112)
    unit = 2 * torch.Size(shape).numel()
    for part, maps in zip(launches.count(op, shape), MAPS[op], strict=True):
        assert maps <= sum(one.bytes for one in part) / unit < maps + 0.9


def test_the_count_is_that_of_the_launches_made(monkeypatch):
    """Nothing is left behind by counting: the kernels' own launch is in its place."""
    from mmattn.ops import dispatch
    from mmattn.ops.triton import common, scale

    before = dispatch.backend
    launches.count('se', (2, 8, 4, 4))
    with pytest.raises(RuntimeError, match='two devices'):
        scale.launch(scale.scale_kernel, 1, torch.ones(1), torch.ones(1, device='meta'))
    assert scale.launch is common.launch
    assert dispatch.backend is before


def test_the_model():
    gpu = launches.GPU(1e12, 'made up')
    overhead = launches.Overhead(triton=3e-6, aten=1e-6)
    mega = int(launches.ACHIEVED * 1e12 * 5e-6)  # bytes in 5 us
    given = [launches.Launch(*one) for one in (('a_kernel', 0), ('aten::x', 8), ('b_kernel', mega))]
    assert launches.modelled(given, gpu, overhead) == pytest.approx(3e-6 + 1e-6 + 5e-6, rel=1e-3)
    assert len(launches.rows([SHAPE])) == 1 + 1 + len(launches.GATES)


@pytest.mark.parametrize('target', machine_code.TARGETS)
def test_machine_code(target, monkeypatch, pytestconfig):
    monkeypatch.setenv('TRITON_CACHE_DIR', str(pytestconfig.cache.mkdir('triton')))
    forward, backward = machine_code.compiled('channel_scale', target)
    assert (forward.kernel, backward.kernel) == ('scale_kernel', 'scale_grad_kernel')
    for code in (forward, backward):
        assert (code.target, code.spills, code.stack) == (target, 0, 0)
        assert 8 <= code.registers <= 255
        assert code.shared <= 48 * 1024
        assert code.instructions > 30


@pytest.mark.parametrize('args', (['launches', '--shapes', '2x3x4'], ['code', '--targets', '70']))
def test_wrong_arguments(args, capsys):
    with pytest.raises(SystemExit, match='2'):
        tool().main(args)
    said = capsys.readouterr().err
    assert 'NxCxHxW of four' in said or 'invalid choice: 70' in said


def test_the_tool(capsys):
    tool().main(['launches', '--shapes', '8x16x14x14', '--dtype', 'fp32'])
    assert '| 8x16x14x14 | SE | 3 + 4 | 3 + 4 |' in capsys.readouterr().out


def tool():
    spec = importlib.util.spec_from_file_location('gpu_model', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
