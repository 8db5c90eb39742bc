"""Gates whose layers were changed, pruned, quantised, sharded or made without memory."""

import asyncio
import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import mmattn.attention
from mmattn import ops
from mmattn.ops import chunks, native

NAMES = (
    'SE',
    'ECA',
    'CBAM',
    'CoordAttention',
    'CAT',
    'DRTAM',
    'TripletAttention',
    'EMA',
)
each_gate = pytest.mark.parametrize('name', NAMES)
each_impl = pytest.mark.parametrize('impl', ops.dispatch.IMPLS)


@pytest.fixture(autouse=True)
def kernels_for_small_maps(monkeypatch):
    monkeypatch.setattr(native, 'SMALL', 0)


def build(name, channels=16, **kwargs):
    """A gate away from a start where gradients vanish: CAT's factors are 0."""
    torch.manual_seed(0)
    gate = getattr(mmattn.attention, name)(channels, **kwargs)
    with torch.no_grad():
        for param in gate.parameters():
            param.add_(torch.randn_like(param) * 0.3)
    return gate


def some(channels=16):
    return torch.randn(2, channels, 9, 8, generator=torch.Generator().manual_seed(1))


def outcome(gate, x):
    """y and the gradients of x and of all parameters."""
    x = x.clone().requires_grad_()
    y = gate(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *gate.parameters()])]


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class Doubled(torch.Tensor):
    """A weight that keeps half of its values elsewhere: what `data_ptr` gives is not its value."""

    @staticmethod
    def __new__(cls, half):
        return torch.Tensor._make_wrapper_subclass(
            cls, half.shape, dtype=half.dtype, device=half.device, requires_grad=half.requires_grad
        )

    def __init__(self, half):
        self.half_of_it = half

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def plain(value):
            return value.half_of_it * 2 if isinstance(value, cls) else value

        if func is torch.ops.aten.detach.default:
            return cls(args[0].half_of_it)
        args, kwargs = torch.utils._pytree.tree_map(plain, (args, kwargs or {}))
        return func(*args, **kwargs)


# ------------------------------------------------------------------------- layers that are changed


CHANGES = {}


def change(function):
    CHANGES[function.__name__] = function
    return function


@change
def patched_forward(layer):
    """As accelerate's offloading does."""
    forward = layer.forward
    layer.forward = lambda *args: forward(*args) * 2
    return lambda: delattr(layer, 'forward')


@change
def patched_class(layer):
    kind, forward = type(layer), type(layer).forward
    kind.forward = lambda self, *args: forward(self, *args) * (2 if self is layer else 1)
    return lambda: setattr(kind, 'forward', forward)


@change
def hook(layer):
    return layer.register_forward_hook(lambda module, inputs, output: output * 2).remove


@change
def hook_of_all_modules(layer):
    def double(module, inputs, output):
        return output * 2 if module is layer else None

    return nn.modules.module.register_module_forward_hook(double).remove


@change
def parametrization(layer):
    class Twice(nn.Module):
        def forward(self, weight):
            return weight * 2

    for name in [name for name, _ in layer.named_parameters(recurse=False)]:
        parametrize.register_parametrization(layer, name, Twice())
    return lambda: None


@change
def subclass(layer):
    layer.__class__ = type('Changed', (type(layer),), {'forward': lambda self, *args: (
        super(type(self), self).forward(*args) * 2)})  # fmt: skip
    return lambda: None


@change
def subclassed_weight(layer):
    for name, param in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, nn.Parameter(Doubled(param.detach())))
    return lambda: None


@each_impl
@pytest.mark.parametrize('how', CHANGES)
@pytest.mark.parametrize(
    'layer', ('mlp.2', 'initial.channel_norm', 'complement.width_norm', 'initial.height_conv',
              'initial.channel_conv')
)  # fmt: skip
def test_a_changed_layer_of_drtam_is_heard(layer, how, impl):
    """Each change doubles what the layer gives: the same as of doubled parameters."""
    expected = build('DRTAM', impl=impl)
    with torch.no_grad():
        for param in expected.get_submodule(layer).parameters():
            param *= 2
    gate, x = build('DRTAM', impl=impl), some()
    undo = CHANGES[how](gate.get_submodule(layer))
    try:
        with torch.no_grad():
            torch.testing.assert_close(gate(x), expected(x), rtol=1e-4, atol=1e-5)
    finally:
        undo()


@each_impl
@pytest.mark.parametrize('name', ('SE', 'ECA', 'CBAM', 'CoordAttention', 'CAT'))
@pytest.mark.parametrize('how', ('parametrization', 'subclassed_weight'))
def test_a_changed_weight_of_a_gate_is_heard(how, name, impl):
    layers = [key for key, m in build(name).named_modules() if key and m._parameters]
    assert layers
    for layer in layers:
        expected = build(name, impl=impl)
        with torch.no_grad():
            for param in expected.get_submodule(layer).parameters():
                param *= 2
        gate, x = build(name, impl=impl), some()
        CHANGES[how](gate.get_submodule(layer))
        with torch.no_grad():
            torch.testing.assert_close(gate(x), expected(x), rtol=1e-4, atol=1e-5)


def test_a_single_value_is_normalised_by_a_norm_that_is_listened_to():
    """Where the running statistics stand in for a variance, the layer is called all the same."""
    gate, x = build('DRTAM').train(), torch.randn(1, 16, 1, 1)
    expected = gate(x)
    heard = []
    for norm in (gate.initial.height_norm, gate.complement.width_norm):
        norm.register_forward_hook(lambda module, *_: heard.append(module.training))
    torch.testing.assert_close(gate(x), expected)
    assert heard == [False, False]
    assert all(module.training for module in gate.modules())


# ---------------------------------------------------------- norms without running statistics


@each_impl
@pytest.mark.parametrize('train', (True, False))
@pytest.mark.parametrize('name', ('CBAM', 'CoordAttention', 'DRTAM'))
def test_without_running_statistics(name, train, impl):
    """A batch is normalised by its own, in evaluation, too."""
    expected = build(name, impl=impl).double().train()
    gate, x = copy.deepcopy(expected), some().double()
    torch.func.replace_all_batch_norm_modules_(gate)
    assert_close(outcome(gate.train(train), x), outcome(expected, x))
    if name != 'CoordAttention':  # a row and a column: two values
        with pytest.raises(ValueError, match='more than 1 value per channel'):
            gate(torch.randn(1, 16, 1, 1, dtype=torch.float64))


@each_impl
def test_norms_of_other_kinds(impl):
    """No weights; statistics that are kept but not tracked; another norm altogether."""
    x = some()
    plain = build('DRTAM', impl=impl)
    results = []
    for make in (
        lambda: nn.BatchNorm1d(1, affine=False),
        lambda: nn.BatchNorm1d(1, track_running_stats=False),
        lambda: nn.GroupNorm(1, 1),
        lambda: nn.Identity(),
    ):
        gate = copy.deepcopy(plain)
        gate.initial.height_norm = make()
        y = gate(x)
        assert y.isfinite().all()
        results.append(y)
    torch.testing.assert_close(results[0], results[1])
    assert not torch.equal(results[0], results[2])

    gate = copy.deepcopy(plain)
    gate.initial.height_norm.track_running_stats = False
    before = copy.deepcopy(gate.initial.height_norm.state_dict())
    torch.testing.assert_close(gate(x), plain(x))
    torch.testing.assert_close(gate.initial.height_norm.state_dict(), before)


# -------------------------------------------------------------------- pruned, quantised, sharded


@each_gate
@each_impl
def test_pruned_layers_train(name, impl):
    """Like a gate of the pruned weights, in the second step as in the first."""
    gate, x = build(name, impl=impl), some()
    dense = copy.deepcopy(gate)
    layers = [key for key, m in gate.named_modules() if isinstance(getattr(m, 'weight', None),
                                                                   torch.Tensor)]  # fmt: skip
    for key in layers:
        prune.random_unstructured(gate.get_submodule(key), 'weight', 0.5)
    for step in range(2):
        for key in layers:
            pruned, weight = gate.get_submodule(key), dense.get_submodule(key).weight
            weight.data = (pruned.weight_orig * pruned.weight_mask).detach()
        found, expected = gate(x), dense(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=f'step {step}')
        gate.zero_grad()
        dense.zero_grad()
        found.square().sum().backward()
        expected.square().sum().backward()
        for key in layers:
            pruned, plain = gate.get_submodule(key), dense.get_submodule(key)
            torch.testing.assert_close(
                pruned.weight_orig.grad, plain.weight.grad * pruned.weight_mask,
                rtol=1e-4, atol=1e-4,
            )  # fmt: skip
        with torch.no_grad():
            for key in layers:
                gate.get_submodule(key).weight_orig.sub_(0.01)
    expected = gate(x)
    for key in layers:  # which leaves a weight after the bias
        prune.remove(gate.get_submodule(key), 'weight')
    torch.testing.assert_close(gate(x), expected, rtol=1e-4, atol=1e-5)


@each_gate
@each_impl
@pytest.mark.parametrize('norm', ('weight_norm', 'spectral_norm'))
@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_older_norms_of_weights(name, impl, norm):
    """They make the weight anew whenever the layer is called."""
    gate, x = build(name, impl=impl).eval(), some()
    layers = [m for m in gate.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    for layer in layers:
        getattr(nn.utils, norm)(layer)
    before = gate(x).detach()
    with torch.no_grad():
        for layer in layers:
            (layer.weight_g if norm == 'weight_norm' else layer.bias if layer.bias is not None
             else layer.weight_orig).mul_(-1).add_(0.5)  # fmt: skip
    assert not torch.allclose(gate(x), before)
    gate(x).sum().backward()
    gate(x).sum().backward()


@each_gate
@each_impl
@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::UserWarning')
def test_quantised_linear_layers(name, impl):
    gate, x = build(name, impl=impl).eval(), some()
    quantised = torch.ao.quantization.quantize_dynamic(gate, {nn.Linear}, dtype=torch.qint8)
    if any(isinstance(module, nn.Linear) for module in gate.modules()):
        assert any('quantized' in type(m).__module__ for m in quantised.modules())
    torch.testing.assert_close(quantised(x), gate(x), rtol=0.05, atol=0.05)


def test_a_replaced_layer_that_holds_weights_only_is_refused_in_words():
    gate = build('DRTAM')
    gate.initial.height_conv = nn.Sequential(gate.initial.height_conv)
    with pytest.raises(TypeError, match='StripKernel, which was replaced by a Sequential'):
        gate(some())


@pytest.fixture
def one_process():
    torch.distributed.init_process_group(
        'gloo', store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield torch.distributed.init_device_mesh('cpu', (1,))
    torch.distributed.destroy_process_group()


def test_sharded_gates(one_process):
    fsdp = pytest.importorskip('torch.distributed.fsdp')
    if not hasattr(fsdp, 'fully_shard'):
        pytest.skip('fully_shard is of PyTorch 2.6')
    x = some()
    for name in NAMES:
        plain = build(name)
        sharded = copy.deepcopy(plain)
        fsdp.fully_shard(sharded, mesh=one_process)
        y = sharded(x)
        y.square().sum().backward()
        expected = plain(x)
        expected.square().sum().backward()
        torch.testing.assert_close(y, expected)
        for a, b in zip(sharded.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad.full_tensor(), b.grad, rtol=1e-4, atol=1e-4)


def test_layers_sharded_on_their_own(one_process):
    """Right, or refused in words where the weight was freed again before it is used."""
    fsdp = pytest.importorskip('torch.distributed.fsdp')
    if not hasattr(fsdp, 'fully_shard'):
        pytest.skip('fully_shard is of PyTorch 2.6')
    x = some()
    for name in NAMES:
        plain = build(name)
        sharded = copy.deepcopy(plain)
        for module in list(sharded.modules()):
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
                fsdp.fully_shard(module, mesh=one_process)
        fsdp.fully_shard(sharded, mesh=one_process)
        try:
            y = sharded(x)
        except RuntimeError as error:
            assert name == 'DRTAM' and 'wrap the whole gate' in str(error)  # noqa: PT017
        else:
            torch.testing.assert_close(y, plain(x))


def replica(module):
    """A module as `nn.DataParallel` copies it to a device: its parameters are mere attributes."""
    made = module._replicate_for_data_parallel()
    for key, child in module.named_children():
        made._modules[key] = replica(child)
    for key, param in module._parameters.items():
        if param is None:
            made._parameters[key] = None
        else:
            setattr(made, key, param * 1)
    return made


@each_gate
@each_impl
def test_replicas_of_data_parallel(name, impl):
    gate, x = build(name, impl=impl).eval(), some()
    copied = replica(gate)
    y = copied(x)
    torch.testing.assert_close(y, gate(x))
    y.sum().backward()
    assert all(p.grad is not None for p in gate.parameters())


# ----------------------------------------------------------------------------- without memory


@each_gate
@pytest.mark.parametrize('how', ('to_empty', 'assign'))
def test_built_on_the_meta_device(name, how):
    """A state dict brings all that a gate needs."""
    expected, x = build(name).eval(), some()
    with torch.device('meta'):
        gate = getattr(mmattn.attention, name)(16)
    assert all(p.is_meta for p in gate.parameters())
    if how == 'to_empty':
        gate.to_empty(device='cpu')
        for buffer in gate.buffers():  # as memory that was used before may be
            if buffer.is_floating_point() and buffer is not getattr(gate, 'taps', None):
                buffer.fill_(float('nan'))
        gate.load_state_dict(expected.state_dict())
    else:
        gate.load_state_dict(expected.state_dict(), assign=True)
    torch.testing.assert_close(gate.eval()(x), expected(x))


def test_taps_are_not_what_memory_happened_to_hold():
    gate = mmattn.attention.CAT(16)
    taps = gate.taps.clone()
    with torch.device('meta'):
        gate = mmattn.attention.CAT(16)
    gate._apply(lambda t: torch.full_like(t, float('nan'), device='cpu'))
    assert torch.equal(gate.taps, taps)
    assert torch.equal(gate.half().float().taps, taps)
    version = gate.taps._version
    assert gate.to('cpu').taps._version == version  # saved for backward, it must not change


# ---------------------------------------------------------------------------- threads and tasks


def test_use_impl_holds_for_its_own_thread():
    seen = []
    with ops.use_impl('reference'):
        thread = threading.Thread(target=lambda: seen.append(ops.get_impl()))
        thread.start()
        thread.join()
        assert ops.get_impl() == 'reference'
    assert seen == ['fast']
    ops.set_impl('reference')
    try:
        thread = threading.Thread(target=lambda: seen.append(ops.get_impl()))
        thread.start()
        thread.join()
        assert seen[1:] == ['reference']
    finally:
        ops.set_impl('fast')


def test_use_impl_holds_for_its_own_task():
    async def borrow(impl, entered, leave):
        with ops.use_impl(impl):
            entered.set()
            await leave.wait()
            return ops.get_impl()

    async def both():
        first, second, leave = (asyncio.Event() for _ in range(3))
        tasks = [
            asyncio.create_task(borrow('reference', first, leave)),
            asyncio.create_task(borrow('fast', second, leave)),
        ]
        await first.wait()
        await second.wait()
        here = ops.get_impl()
        leave.set()
        return [here, *await asyncio.gather(*tasks)]

    assert asyncio.run(both()) == ['fast', 'reference', 'fast']
    assert ops.get_impl() == 'fast'


# ----------------------------------------------------------------------------------- caches


def test_caches_are_bounded():
    """Of tensors there is none: training at many scales would fill a device's memory."""
    assert chunks.windows.cache_info().maxsize is not None
    assert not hasattr(chunks, 'windows_tensor')
    assert native.rank1._cuts.cache_info().maxsize is not None
