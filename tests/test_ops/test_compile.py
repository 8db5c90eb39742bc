"""`torch.compile` and `torch.export` of the gates run the kernels, to eager mode's results."""

import copy
from pathlib import Path

import pytest
import torch
from needs import needs_kernels
from torch import nn

import mmattn.attention as attention
from mmattn import ops

pytestmark = needs_kernels
GATES = ('SE', 'ECA', 'CBAM', 'CoordAttention', 'CAT', 'DRTAM')
OPERATORS = dict(zip(GATES, ('se', 'eca', 'cbam', 'coord', 'cat', 'drtam'), strict=True))
each_gate = pytest.mark.parametrize('name', GATES)


def made(name, channels=8, **kwargs):
    torch.manual_seed(0)
    gate = getattr(attention, name)(channels, **kwargs).double()
    with torch.no_grad():
        for p in gate.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return gate


def left_to_the_compiler(name):
    """Whether compiled code has a gate's equations on a CPU, given all sizes: SE's, where PyTorch
    tells that code is compiled and not exported."""
    if name != 'SE' or not hasattr(torch.compiler, 'is_exporting'):
        return False
    asked = torch.compile(lambda x: x + int(torch.compiler.is_exporting()), backend='eager')
    return not asked(torch.zeros(())).item()


def seen_by_the_compiler(found):
    """A backend that notes the targets of the graphs, forward and backward, cut as Inductor cuts
    them: PyTorch 2.8's other way, aot_eager's, cannot keep an operator's list of tensors."""
    from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd

    def note(graph, _):
        found.update(str(node.target) for node in graph.graph.nodes if node.op == 'call_function')
        return make_boxed_func(graph.forward)

    return aot_autograd(
        fw_compiler=note, bw_compiler=note, partition_fn=min_cut_rematerialization_partition
    )


def outcome(gate, x):
    y = gate(x)
    return [
        y, *torch.autograd.grad(y.square().sum(), [x, *gate.parameters()]),
        *(b.clone() for b in gate.buffers()),
    ]  # fmt: skip


@each_gate
@pytest.mark.parametrize(
    'train, dynamic',
    (
        pytest.param(True, True, id='train-dynamic'),
        pytest.param(True, False, id='train-static', marks=pytest.mark.slow),
        pytest.param(False, True, id='eval-dynamic', marks=pytest.mark.slow),
    ),
)
def test_compiled_in_one_graph_with_kernels(name, train, dynamic):
    torch._dynamo.reset()
    gate, targets = made(name).train(train), set()
    plain = copy.deepcopy(gate)
    compiled = torch.compile(
        gate, backend=seen_by_the_compiler(targets), fullgraph=True, dynamic=dynamic
    )
    for shape in ((2, 8, 6, 5), (3, 8, 7, 9)) if dynamic else ((2, 8, 6, 5),):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape, dtype=torch.float64).to(memory_format=layout)
            expected = outcome(plain, x.clone().requires_grad_())
            y = compiled(x.requires_grad_())
            found = [
                y, *torch.autograd.grad(y.square().sum(), [x, *gate.parameters()]),
                *(b.clone() for b in gate.buffers()),
            ]  # fmt: skip
            assert y.is_contiguous(memory_format=layout)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    ours = {target.split('.')[1] for target in targets if target.startswith('mmattn.')}
    if not dynamic and left_to_the_compiler(name):
        assert targets and not ours
        return
    assert any(target.endswith('_backward') for target in ours), ours
    assert any(not target.endswith('_backward') for target in ours), ours


@each_gate
def test_compiled_without_gradients(name):
    torch._dynamo.reset()
    gate, targets = made(name).eval(), set()
    compiled = torch.compile(gate, backend=seen_by_the_compiler(targets), fullgraph=True)
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(compiled(x), gate(x))
    assert any(target.startswith('mmattn.') for target in targets) != left_to_the_compiler(name)


def test_compiled_se_of_a_large_map_with_kernels():
    """Of a smaller one a compiler makes the equations quicker."""
    torch._dynamo.reset()
    gate, targets = made('SE').float(), set()
    compiled = torch.compile(gate, backend=seen_by_the_compiler(targets), fullgraph=True)
    with torch.no_grad():
        compiled(torch.zeros(1, 8, 724, 725))
    assert any(target.startswith('mmattn.se') for target in targets)


@pytest.mark.slow
@each_gate
def test_inductor_in_a_network(name):
    """Between layers that are fused, and convolutions: for these Inductor lays out what is 4-D as
    channels_last, and what the gate keeps for backward with it."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        getattr(attention, name)(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.AdaptiveAvgPool2d(1),
    )  # fmt: skip
    x, results = torch.randn(2, 3, 12, 10), []
    for model in (copy.deepcopy(net), torch.compile(copy.deepcopy(net), fullgraph=True)):
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        y.square().sum().backward()
        results.append((y, leaf.grad, *(p.grad for p in model.parameters())))
    # Some are zero but for rounding, as of a bias before a batch norm: small beside the others.
    floor = max(float(grad.abs().max()) for grad in results[0][1:])
    for a, b in zip(*results, strict=True):
        largest = max(float(b.detach().abs().max()), 1e-2 * floor)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * largest)


@each_gate
def test_impl_reference_is_compiled_as_equations(name):
    torch._dynamo.reset()
    gate, targets = made(name, impl='reference'), set()
    compiled = torch.compile(gate, backend=seen_by_the_compiler(targets), fullgraph=True)
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64, requires_grad=True)
    expected = outcome(copy.deepcopy(gate), x)
    y = compiled(x)
    torch.testing.assert_close(y, expected[0])
    assert not any('mmattn' in target for target in targets)


def targets_of(program):
    """Autocast switched off is a graph of its own within."""
    graphs = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    return {str(node.target) for graph in graphs for node in graph.graph.nodes}


@pytest.mark.slow
@pytest.mark.parametrize('autocast', (False, True), ids=('given', 'autocast'))
@pytest.mark.parametrize('dtype', (torch.bfloat16, torch.float16), ids=str)
@each_gate
def test_inductor_in_16_bits(name, dtype, autocast):
    """A map in 16 bits, given or made by autocast, with parameters in float32."""
    torch._dynamo.reset()
    gate = made(name).float()
    plain, x = copy.deepcopy(gate), torch.randn(2, 8, 6, 5)
    x = x if autocast else x.to(dtype)
    found = []
    for module in (torch.compile(gate, fullgraph=True), plain):
        leaf = x.clone().requires_grad_()
        with torch.autocast('cpu', dtype, enabled=autocast):
            # A layer in 16 bits before the gate, as in a network.
            y = module(nn.functional.conv2d(leaf, torch.eye(8, dtype=x.dtype)[..., None, None]))
        assert y.dtype is dtype
        found.append(
            [y, *torch.autograd.grad(y.float().square().sum(), [leaf, *module.parameters()])]
        )
    for compiled, eager in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@each_gate
@pytest.mark.parametrize('kind', ('operators', 'equations'))
def test_packaged_by_aotinductor(name, kind, tmp_path):
    """A network compiled ahead of time calls the operator, or has the equations compiled in. What
    it calls must be there when it runs: the process imports mmattn."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), getattr(attention, name)(8), nn.ReLU())
    x = torch.randn(2, 3, 9, 8)
    with torch.no_grad():
        y = net.eval()(x)
        program = torch.export.export(net, (x,))
    if kind == 'equations':
        program = program.run_decompositions(ops.decompositions)
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / 'net.pt2')
    )
    torch.testing.assert_close(torch._inductor.aoti_load_package(package)(x), y)
    assert (b'mmattn' in Path(package).read_bytes()) or kind == 'equations'


@pytest.mark.parametrize(
    'name, strict',
    [
        # Each gate in one of the ways, either with three: the other ways are slow.
        pytest.param(name, strict, marks=[] if strict == (i % 2 == 0) else pytest.mark.slow)
        for i, name in enumerate(GATES)
        for strict in (True, False)
    ],
    ids=lambda value: {True: 'strict', False: 'non-strict'}.get(value, value),
)
def test_exported_with_operators_or_equations(name, strict):
    gate = made(name).eval()
    x = torch.randn(3, 8, 6, 5, dtype=torch.float64)
    batch = torch.export.Dim('batch', min=2)
    program = torch.export.export(gate, (x,), dynamic_shapes=({0: batch},), strict=strict)
    targets = targets_of(program)
    ours = {target for target in targets if target.startswith('mmattn.')}
    assert ours == {f'mmattn.{OPERATORS[name]}.default'}, ours
    torch.testing.assert_close(program.module()(x[:2]), gate(x[:2]))
    plain = program.run_decompositions(ops.decompositions)
    targets = targets_of(plain)
    assert targets and not any('mmattn' in target for target in targets), targets
    torch.testing.assert_close(plain.module()(x), gate(x))
