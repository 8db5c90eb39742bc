"""What every gate promises, whatever its equations: sizes, precision, surviving what users do."""

import copy
import io
import pickle

import onnxruntime
import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

import mmattn.attention
from mmattn import ops

ABBRS = dict(
    SE='se',
    ECA='eca',
    CBAM='cbam',
    CoordAttention='coord',
    CAT='cat',
    DRTAM='drtam',
    SimAM='simam',
    TripletAttention='triplet',
    EMA='ema',
)
VARIANTS = [dict(type=name) for name in ABBRS] + [
    dict(type='SE', bias=True),
    dict(type='CBAM', bias=False, norm=False),
    dict(type='CBAM', norm_weight=0),
    dict(type='CAT', formula='algorithm', interior_softmax=True, entropy_range=(-1, 1)),
    dict(type='CAT', arrangement='channel-spatial', interior=False),
    dict(type='CAT', arrangement='spatial-channel', pools=('avg', 'max'), gaussian_size=0),
    dict(type='CAT', arrangement='channel', pools=('ent',)),
    dict(type='CAT', arrangement='spatial', exterior=False),
    dict(type='CAT', spatial_fusion='concat'),
    dict(type='CAT', pools=('ent', 'max'), exterior=False),
    dict(type='DRTAM', num_chunks=2, num_channel_chunks=4, dual=False),
    dict(type='DRTAM', num_channel_chunks=2, min_hidden=1, plane_max=True, chunk_max=True),
    dict(type='TripletAttention', kernel_size=3, spatial=False),
    dict(type='EMA', factor=2),
]


def variant_id(cfg):
    return '-'.join(f'{key}={value}' if key != 'type' else value for key, value in cfg.items())


each_gate = pytest.mark.parametrize('name', ABBRS)
each_variant = pytest.mark.parametrize('cfg', VARIANTS, ids=variant_id)
each_impl = pytest.mark.parametrize('impl', ops.dispatch.IMPLS)


def build(cfg, channels, **kwargs):
    """A gate with random parameters and running statistics: CAT starts from factors of 0."""
    torch.manual_seed(0)
    gate = MODELS.build(dict(cfg, in_channels=channels, **kwargs))
    with torch.no_grad():
        for param in gate.parameters():
            param.normal_(std=0.5)
        for module in gate.modules():
            if isinstance(module, _BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return gate


def test_the_gates_are_in_the_root_registry():
    assert sorted(mmattn.attention.__all__) == sorted(ABBRS)
    for name in ABBRS:
        assert MODELS.get(name) is getattr(mmattn.attention, name)


@each_gate
def test_mmcv_builds_it_as_a_plugin(name):
    mmcv_cnn = pytest.importorskip('mmcv.cnn')
    layer_name, layer = mmcv_cnn.build_plugin_layer(
        dict(type=name), postfix='_conv3', in_channels=16
    )
    assert layer_name == f'{ABBRS[name]}_conv3'
    assert type(layer).__name__ == name and layer.in_channels == 16


@each_variant
@each_impl
@pytest.mark.parametrize('train', (True, False))
def test_any_size(cfg, impl, train):
    for channels in (1, 23):
        gate = build(cfg, channels, impl=impl).train(train)
        for n, h, w in ((1, 1, 1), (2, 1, 7), (1, 2, 1), (2, 5, 4)):
            x = torch.randn(n, channels, h, w, requires_grad=True)
            y = gate(x)
            y.square().sum().backward()
            assert y.shape == x.shape and y.dtype == x.dtype
            assert y.isfinite().all() and x.grad.isfinite().all()


@each_variant
def test_an_empty_batch_passes_and_spoils_nothing(cfg):
    gate = build(cfg, 8).train()
    before = copy.deepcopy(gate.state_dict())
    assert gate(torch.randn(0, 8, 4, 4)).shape == (0, 8, 4, 4)
    torch.testing.assert_close(gate.state_dict(), before)


@pytest.mark.parametrize('name', ('CBAM', 'DRTAM'))
def test_a_single_value_is_normalised_by_the_running_statistics(name):
    gate = build(dict(type=name), 8).train()
    before = copy.deepcopy(gate.state_dict())
    x = torch.randn(1, 8, 1, 1)
    y = gate(x)
    spared = [key for key in before if 'norm' in key and 'channel_norm' not in key]
    assert spared
    for key in spared:
        torch.testing.assert_close(gate.state_dict()[key], before[key])
    if name == 'CBAM':
        torch.testing.assert_close(y, gate.eval()(x))


@each_variant
@each_impl
@pytest.mark.parametrize('train', (True, False))
def test_gradients(cfg, impl, train):
    gate = build(cfg, 6, impl=impl).double().train(train)
    directions = {name: torch.randn_like(param) for name, param in gate.named_parameters()}

    def run(x, steps):
        params = {
            name: param.detach() + step * directions[name]
            for step, (name, param) in zip(steps, gate.named_parameters(), strict=True)
        }
        return functional_call(gate, params, x)

    x = torch.randn(2, 6, 5, 4, dtype=torch.float64, requires_grad=True)
    steps = torch.zeros(len(directions), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, steps), fast_mode=True)


@each_variant
@each_impl
@pytest.mark.parametrize('dtype', (torch.float16, torch.bfloat16))
def test_autocast_at_large_values(cfg, impl, dtype):
    gate = build(cfg, 24, impl=impl).train()
    x = (torch.rand(2, 24, 9, 7) * 2 - 1).mul(1e4).to(dtype)
    x[0, 0, 0, 0], x[1, 1] = 1e4, -1e4
    exact = copy.deepcopy(gate)(x.float())
    x.requires_grad_()
    with torch.autocast('cpu', dtype):
        y = gate(x)
    assert y.dtype == dtype and y.isfinite().all()
    # Nothing but the output was rounded.
    torch.testing.assert_close(y, exact.to(dtype), rtol=2**-7, atol=0.1)
    (y.float() * 1e-4).sum().backward()
    assert all(t.grad.isfinite().all() for t in (x, *gate.parameters()))


@each_variant
@pytest.mark.parametrize('dtype', (torch.float16, torch.bfloat16))
def test_converted_model(cfg, dtype):
    torch.manual_seed(0)
    gate = MODELS.build(dict(cfg, in_channels=256)).to(dtype)
    for scale in (1, 1e4):
        for x in (torch.rand(2, 256, 9, 7) * 2 - 1, torch.ones(2, 256, 9, 7)):
            x = (x * scale).to(dtype)
            for train in (True, False):
                y = gate.train(train)(x)
                assert y.dtype == dtype and y.isfinite().all()


@each_variant
@each_impl
def test_memory_format_is_kept(cfg, impl):
    gate = build(cfg, 8, impl=impl).eval()
    x = torch.randn(2, 8, 6, 5)
    y = gate(x)
    assert y.is_contiguous()
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    last = gate(x)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, y)
    last.sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


@each_variant
def test_a_sliced_input_is_not_mistaken_for_a_dense_one(cfg):
    gate = build(cfg, 8).eval()
    x = torch.randn(2, 16, 6, 10)[:, ::2, :, 1:9:2]
    torch.testing.assert_close(gate(x), gate(x.contiguous()))


@each_gate
def test_nan_in_nan_out(name):
    gate = build(dict(type=name), 8).eval()
    x = torch.randn(2, 8, 6, 5)
    x[1, 3, 2, 1] = float('nan')
    y = gate(x)
    assert y[0].isfinite().all() and y[1, 3, 2, 1].isnan()


@each_variant
def test_copies_pickles_and_state_dicts(cfg, tmp_path):
    gate = build(cfg, 64).eval()
    x = torch.randn(2, 64, 6, 5)
    y = gate(x)
    torch.save(gate.state_dict(), tmp_path / 'gate.pth')
    fresh = MODELS.build(dict(cfg, in_channels=64)).eval()
    assert not torch.equal(fresh(x), y) or not gate.state_dict()
    fresh.load_state_dict(torch.load(tmp_path / 'gate.pth', weights_only=True))
    for twin in (fresh, copy.deepcopy(gate), pickle.loads(pickle.dumps(gate))):
        assert torch.equal(twin(x), y)
    # The state holds what is learned or counted, nothing that a constructor computes.
    learned = dict(gate.named_parameters()).keys()
    assert all(
        key in learned or key.rsplit('.', 1)[-1].startswith(('running_', 'num_batches'))
        for key in gate.state_dict()
    )


@each_variant
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_traced_module_round_trip(cfg):
    gate = build(cfg, 8).eval()
    x = torch.randn(2, 8, 7, 5)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(gate, x), buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.jit.load(buffer)(x), gate(x))


@each_variant
def test_sync_bn_and_back(cfg):
    gate = build(cfg, 8)
    x = torch.randn(2, 8, 6, 5)
    y = gate.eval()(x)
    norms = sum(isinstance(m, _BatchNorm) for m in gate.modules())
    gate = nn.SyncBatchNorm.convert_sync_batchnorm(gate)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in gate.modules()) == norms
    gate = revert_sync_batchnorm(gate)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in gate.modules())
    torch.testing.assert_close(gate.eval()(x), y)
    gate.train()(torch.randn(1, 8, 1, 1))


@each_variant
def test_fused_conv_bn(cfg):
    mmcv_utils = pytest.importorskip('mmcv.cnn.utils')
    gate = build(cfg, 8).eval()
    x = torch.randn(2, 8, 6, 5)
    y = gate(x)
    fused = mmcv_utils.fuse_conv_bn(gate)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    torch.testing.assert_close(fused(x), y)


@each_variant
@pytest.mark.parametrize('use_reentrant', (True, False))
def test_activation_checkpointing(cfg, use_reentrant):
    grads = []
    for wrapped in (False, True):
        gate = build(cfg, 8).eval()
        x = torch.linspace(-2, 2, 480).reshape(2, 8, 6, 5).sin().requires_grad_()
        y = checkpoint(gate, x, use_reentrant=use_reentrant) if wrapped else gate(x)
        y.square().sum().backward()
        grads.append([x.grad, *(p.grad for p in gate.parameters())])
    torch.testing.assert_close(*grads)


@each_gate
def test_compiled_in_one_graph(name):
    torch._dynamo.reset()
    gate = build(dict(type=name), 8).double().eval()
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(gate, backend='aot_eager', fullgraph=True)
    grads = [
        torch.autograd.grad(module(x).square().sum(), [x, *gate.parameters()])
        for module in (gate, compiled)
    ]
    torch.testing.assert_close(*grads)


@each_variant
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::DeprecationWarning')
def test_onnx(cfg):
    gate = build(cfg, 8).eval()
    for size in ((7, 7), (2, 5)):
        buffer = io.BytesIO()
        torch.onnx.export(
            gate,
            (torch.randn(2, 8, *size),),
            buffer,
            opset_version=17,
            input_names=['x'],
            dynamic_axes=dict(x={0: 'batch'}),
            dynamo=False,
        )
        session = onnxruntime.InferenceSession(buffer.getvalue())
        x = torch.randn(3, 8, *size)
        (y,) = session.run(None, dict(x=x.numpy()))
        torch.testing.assert_close(torch.from_numpy(y), gate(x), rtol=1e-4, atol=1e-5)


@each_variant
def test_function_transforms(cfg):
    gate = build(cfg, 8).eval()
    x, tangent = torch.randn(2, 2, 8, 6, 5).unbind()
    y, moved = torch.func.jvp(gate, (x,), (tangent,))
    torch.testing.assert_close(y, gate(x))
    step = 1e-2
    slope = (gate(x + step * tangent) - gate(x - step * tangent)) / (2 * step)
    assert torch.nn.functional.cosine_similarity(moved.flatten(), slope.flatten(), 0) > 0.99
    params = dict(gate.named_parameters())
    if not params:
        return
    grads = torch.func.grad(lambda p: functional_call(gate, p, x).square().sum())(params)
    gate(x).square().sum().backward()
    for name, param in params.items():
        torch.testing.assert_close(grads[name], param.grad, rtol=1e-4, atol=1e-4)


@each_gate
def test_wrong_inputs(name):
    gate = MODELS.build(dict(type=name, in_channels=8))
    for shape in ((8, 4, 4), (2, 7, 4, 4), (2, 8, 4), (2, 4, 4, 8), (2, 8, 4, 4, 1), (2, 8, 0, 4)):
        with pytest.raises(ValueError, match=rf'{name} takes \(N, 8, H, W\)'):
            gate(torch.randn(shape))
    with pytest.raises(ValueError, match='floating-point'):
        gate(torch.ones(2, 8, 4, 4, dtype=torch.int64))


BAD_ARGUMENTS = [
    *[
        (dict(type=name, in_channels=bad), 'in_channels must be an integer >= 1')
        for name in ABBRS
        for bad in (0, -8, 8.0, '8', None, True)
    ],
    *[
        (dict(type=name, in_channels=8, impl=bad), "impl must be one of ('fast', 'reference')")
        for name in ABBRS
        for bad in ('slow', '', 1)
    ],
    *[
        (dict(type=name, in_channels=8, reduction=bad), 'reduction must be an integer >= 1')
        for name in ('SE', 'CBAM', 'CoordAttention', 'CAT', 'DRTAM')
        for bad in (0, -1, 1.5, '16', None, False)
    ],
    *[
        (
            dict(type='ECA', in_channels=8, kernel_size=bad),
            'kernel_size must be an odd integer >= 1',
        )
        for bad in (0, 2, -3, 3.0)
    ],
    *[
        (dict(type='ECA', in_channels=8, gamma=bad), 'gamma must be a finite number > 0')
        for bad in (0, -2, '2')
    ],
    (dict(type='ECA', in_channels=8, b='1'), 'b must be a finite number, got'),
    *[
        (
            dict(type='CBAM', in_channels=8, kernel_size=bad),
            'kernel_size must be an odd integer >= 1',
        )
        for bad in (0, 2, None)
    ],
    *[
        (dict(type='CBAM', in_channels=8, norm_weight=bad), 'norm_weight must be a finite number')
        for bad in ('0', None, float('nan'))
    ],
    (dict(type='CBAM', in_channels=8, norm=False, norm_weight=0), 'norm_weight must be 1 without'),
    *[
        (dict(type=name, in_channels=8, **{flag: bad}), f'{flag} must be True or False')
        for name, flag in (
            ('SE', 'bias'),
            ('CBAM', 'bias'),
            ('CBAM', 'norm'),
            ('DRTAM', 'dual'),
            ('DRTAM', 'plane_max'),
            ('DRTAM', 'chunk_max'),
            ('CAT', 'interior'),
            ('CAT', 'interior_softmax'),
            ('CAT', 'exterior'),
        )
        for bad in ('False', None, 1)
    ],
    *[
        (dict(type='DRTAM', in_channels=8, **{key: bad}), f'{key} must be an integer >= 1')
        for key in ('num_chunks', 'num_channel_chunks', 'min_hidden')
        for bad in (0, -1, 2.0)
    ],
    *[
        (dict(type='CAT', in_channels=8, arrangement=bad), "arrangement must be one of ('parallel'")
        for bad in ('both', 'channel-channel', None, ['channel'])
    ],
    *[
        (dict(type='CAT', in_channels=8, formula=bad), "formula must be one of ('equation', 'algor")
        for bad in ('eq', None)
    ],
    *[
        (dict(type='CAT', in_channels=8, pools=bad), 'pools must be a tuple of one or more of')
        for bad in ((), 'avg', ('avg', 'min'), None, (['avg'],))
    ],
    *[
        (dict(type='CAT', in_channels=8, entropy_range=bad), 'entropy_range must be two finite')
        for bad in ((0,), (1, 0), (0, 0), (0, 1, 2), None, ('0', '1'), (0, float('nan')))
    ],
    *[
        (dict(type='CAT', in_channels=8, gaussian_size=bad), 'gaussian_size (or 0) must be an odd')
        for bad in (4, -1, 5.0, None)
    ],
    *[
        (dict(type='CAT', in_channels=8, gaussian_sigma=bad), 'gaussian_sigma (or None) must be a')
        for bad in (0, -1, '1')
    ],
    *[
        (
            dict(type='CAT', in_channels=8, spatial_kernel=bad),
            'spatial_kernel must be an odd integer',
        )
        for bad in (0, 6, 7.0)
    ],
    *[
        (dict(type='SimAM', in_channels=8, e_lambda=bad), 'e_lambda must be a finite number > 0')
        for bad in (0, -1, '1', None)
    ],
    *[
        (dict(type='TripletAttention', in_channels=8, kernel_size=bad), 'kernel_size must be an od')
        for bad in (0, 2, None)
    ],
    (dict(type='TripletAttention', in_channels=8, spatial=1), 'spatial must be True or False'),
    *[
        (dict(type='EMA', in_channels=8, factor=bad), 'factor must be an integer >= 1')
        for bad in (0, -1, 2.0, None)
    ],
]


@pytest.mark.parametrize('cfg, message', BAD_ARGUMENTS, ids=lambda v: str(v).replace('/', '|'))
def test_wrong_arguments(cfg, message):
    cfg = dict(cfg)
    gate = MODELS.get(cfg.pop('type'))
    with pytest.raises(ValueError) as info:
        gate(**cfg)
    assert message in str(info.value)


@each_gate
def test_misspelt_argument(name):
    with pytest.raises(TypeError, match='reductoin'):
        MODELS.build(dict(type=name, in_channels=8, reductoin=16))
