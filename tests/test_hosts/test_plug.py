"""`plug` finds channels and layout, refuses what is no place, and touches nothing else."""

import copy
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked import processes
from mmcv.cnn.utils.fuse_conv_bn import fuse_conv_bn
from mmengine.model import ExponentialMovingAverage, convert_sync_batchnorm, revert_sync_batchnorm
from plug_cases import EACH_WAY, EVERYWHERE, Block, Times, images, net
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.nn.parallel import DistributedDataParallel

from mmattn import CAT, CBAM, DRTAM, ECA, SE, CoordAttention, plug, unplug
from mmattn.attention.gate import Gate
from mmattn.hosts.identity import identity_scales
from mmattn.hosts.plug import places
from mmattn.hosts.plug.patterns import matches

ROOT = Path(__file__).parents[2]


def plugged(at=EVERYWHERE, gate=CBAM, **kwargs):
    model = net()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        plug(model, gate, at, **kwargs)
    return model.eval()


def gates(model):
    return [name for name, module in model.named_modules() if isinstance(module, Gate)]


def count_calls(model):
    calls = []
    for module in model.modules():
        if isinstance(module, Gate):
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_places_are_found():
    found = {place.at: place for place in places(net())}
    spots = {name: place.spots[0] for name, place in found.items() if place.spots}
    assert {spot.channels for spot in spots.values()} == {8}
    assert (spots['layer2'].layout, spots['last'].layout) == ('NCHW', 'NHWC')
    assert (spots['mixers.0'].layout, spots['mixers.0'].prefix) == ('NLC', 1)
    assert (spots['gridded'].grid, spots['gridded'].prefix) == (('output', (1,)), 0)
    assert found['layer1'].behind == 'layer1.1' and found['stem'].behind == 'stem.2'
    assert 'never runs' in found['unused'].reason and 'never runs' in found['mixers'].reason
    assert '(2, 5)' in found['head'].reason
    assert str(found['layer2']) == 'layer2 (Block): 8 NCHW'


def test_all_kinds_of_places():
    """A gate is behind its place: the result is that of a hook on the bare model."""
    model, bare, x = plugged(gate=Times), net(), images()

    def times(x):
        return 1.5 * x

    def tokens(x):
        return torch.cat((x[:, :1], 1.5 * x[:, 1:]), 1)

    for name in ('stem', 'stem.1', 'layer1', 'layer1.0.bn2', 'layer2', 'layer2.conv2', 'own'):
        bare.get_submodule(name).register_forward_hook(lambda _m, _i, out: times(out))
    bare.last.register_forward_hook(lambda _m, _i, out: times(out))
    for mixer in bare.mixers:
        mixer.register_forward_hook(lambda _m, _i, out: tokens(out))
    bare.gridded.register_forward_hook(lambda _m, _i, out: (times(out[0]), out[1]))
    with torch.no_grad():
        torch.testing.assert_close(model(x), bare(x))
        # The grid of the ViT's tokens follows the image.
        other = images(size=(64, 32))
        torch.testing.assert_close(model(other), bare(other))


def test_state_dict_keys_stay():
    bare, model = net().state_dict(), plugged()
    state = model.state_dict()
    theirs = [key for key in state if key in bare]
    assert theirs == list(bare)
    ours = set(state) - set(bare)
    assert len({key.partition('.cbam')[0] for key in ours}) == len(gates(model)) == 11
    missing, unexpected = model.load_state_dict(bare, strict=False)
    assert not unexpected and all('.cbam' in key for key in missing)
    other = plugged()
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(state, strict=True)
    with torch.no_grad():
        assert torch.equal(other(images()), model(images()))


def test_unplug_gives_the_bare_model_back():
    model, bare = plugged(), net()
    names = {type(m) for m in bare.modules()}
    assert len(unplug(model, 'layer*')) == 2
    assert len(gates(model)) == 9
    unplug(model)
    assert model.state_dict().keys() == bare.state_dict().keys()
    assert {type(m) for m in model.modules()} == names
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(images()), bare(images()))
    with pytest.raises(ValueError, match='no gate of plug is there'):
        unplug(model)


def test_two_gates_at_a_place():
    model = net()
    for at in ('layer2', 'layer2.bn1'):
        plug(model, Times, at)
        plug(model, lambda c: Times(c, 3.0), at)
    keys = [key for key in model.state_dict() if 'times' in key]
    assert keys == [f'layer2{inner}.times{n}.scale' for inner in ('.bn1', '') for n in ('', '2')]
    copied = copy.deepcopy(model)
    copied.load_state_dict(model.state_dict())
    bare = net()
    for module in (bare.layer2.bn1, bare.layer2):
        module.register_forward_hook(lambda _m, _i, out: 4.5 * out)
    with torch.no_grad():
        torch.testing.assert_close(copied(images()), bare(images()))


def test_patterns():
    assert matches('a.b.c', 'a.*.c') and not matches('a.b.c', 'a.*')
    assert matches('a.b.c', 'a.**') and matches('a.b.c', '**.c') and matches('a', '**')
    assert matches('layer12', 'layer1?') and not matches('a.b', 'a?b')


@pytest.mark.parametrize(
    'at, message',
    [
        ('layerr2', 'no module has such a name; near it: layer2'),
        ('head', r'head \(Linear\): gives \(2, 5\) for a batch of 2, no map or grid'),
        ('mixers', 'never runs'),
        (['layer1', 'layer1.1'], 'layer1 and layer1.1 are one place, as a sequence'),
        ([], 'at must be a pattern'),
    ],
)
def test_refused_places(at, message):
    model = net()
    keys = model.state_dict().keys()
    with pytest.raises(ValueError, match=message):
        plug(model, SE, at)
    assert model.state_dict().keys() == keys


@pytest.mark.parametrize(
    'gate, kwargs, message',
    [
        ('SEE', {}, "did you mean 'SE'"),
        (dict(type='SE', ratio=3), {}, "unknown argument 'ratio'"),
        (3, {}, 'must be a class'),
        (lambda c: SE(c, reduction=0), {}, 'reduction must be an integer'),
        (SE(8), {}, 'a module can be in one place'),
        (SE, dict(start='zero'), "start 'zero'; allowed: None, 'identity'"),
        (SE, dict(layout='NHCW', channels=8), "layout 'NHCW'; allowed: NCHW"),
        (SE, dict(layout='NLC', channels=8), 'grid='),
        (lambda c: nn.ReLU(inplace=True), dict(start='identity'), 'in place'),
        (lambda c: nn.Conv2d(c, 3, 1), dict(start='identity'), 'keeps the shape'),
    ],
)
def test_refused_arguments(gate, kwargs, message):
    model = net()
    keys = model.state_dict().keys()
    with pytest.raises(ValueError, match=message):
        plug(model, gate, 'layer*', **kwargs)
    assert model.state_dict().keys() == keys


def test_nothing_is_changed_where_a_gate_fails():
    """All or nothing: the last of the gates cannot be built."""
    model, seen = net(), []

    def gate(channels):
        seen.append(channels)
        if len(seen) == 3:
            raise ValueError('no more')
        return SE(channels)

    with pytest.raises(ValueError, match='no more'):
        plug(model, gate, ['layer1', 'layer2', 'own'])
    assert not gates(model)


def test_without_a_dry_run():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Block(8)

        def forward(self, x):
            return self.body(x) if x.sum() > 0 else x

    model = Asks()
    with pytest.raises(ValueError, match='channels= and layout='):
        plug(model, SE, 'body.conv1')
    plug(model, SE, 'body', channels=8)
    assert len(gates(model)) == 1 and count_calls(model) == []
    calls = count_calls(model)
    model(torch.ones(1, 8, 4, 4))
    assert calls == [1]


def test_an_example_for_the_dry_run():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block(8)

        def forward(self, first, scale):
            return self.block(first) * scale

    model = Two()
    plug(model, SE, 'block', example=dict(first=torch.ones(1, 8, 4, 6), scale=2.0))
    assert len(gates(model)) == 1


@pytest.mark.parametrize(
    'gate, message',
    [
        (SE(4, reduction=2), r'does not run .*SE takes \(N, 4, H, W\)'),
        (lambda channels: nn.Conv2d(channels, 5, 1), r'gives \(2, 5, .*for \(2, 8, .*keeps'),
        (lambda channels: nn.AvgPool2d(2), 'keeps the shape'),
        (lambda channels: nn.LSTM(1, 1), 'does not run .*the dry run ended in'),
    ],
)
def test_a_gate_that_does_not_fit_is_refused(gate, message):
    model = net()
    keys = [*model.state_dict()]
    for at in ('layer2', 'stem.0'):
        with pytest.raises(ValueError, match=message):
            plug(model, gate, at)
        assert [*model.state_dict()] == keys


def test_arguments_of_another_type_are_refused():
    for wrong, message in (
        (dict(at=None), 'at must be a pattern .* got None'),
        (dict(at=3), 'at must be a pattern .* got 3'),
        (dict(at='layer2', input_size=64), r'input_size must be \(H, W\) of images, got 64'),
        (dict(at='layer2', input_size=(3, 64, 64)), 'input_size must be'),
    ):
        with pytest.raises(ValueError, match=message):
            plug(net(), SE, **wrong)


def test_weights_and_random_numbers_stay():
    bare, model = net(), net()
    torch.manual_seed(5)
    expected = torch.randn(3)
    drawn = []
    for gate in (SE, CAT, CBAM):
        model = net()
        torch.manual_seed(4)
        plug(model, gate, 'layer*')
        drawn.append(torch.randn(3))
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
    assert expected is not drawn
    for key, value in bare.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    assert not torch.equal(model.layer1[1].cbam.mlp[0].weight, model.layer2.cbam.mlp[0].weight)


def test_wrapped_and_compiled_models_are_refused():
    model = nn.DataParallel(net())
    with pytest.raises(ValueError, match='wrapped by DataParallel'):
        plug(model, SE, 'module.layer2')
    with pytest.raises(ValueError, match='compiled'):
        plug(torch.compile(net(), backend='eager'), SE, '_orig_mod.layer2')


def test_follows_device_and_precision():
    model = net().to(torch.bfloat16)
    plug(model, SE, 'layer2', start='identity')
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model = net().to('meta')
    plug(model, SE, 'layer2')
    assert {p.device.type for p in model.parameters()} == {'meta'}


def test_a_neck_has_a_gate_for_each_level():
    class Neck(nn.Module):
        def __init__(self):
            super().__init__()
            self.fine, self.coarse = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1)

        def forward(self, x):
            fine = self.fine(x)
            return dict(fine=fine, coarse=self.coarse(x[..., ::2, ::2]), again=fine)

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.neck = nn.Conv2d(3, 8, 3, 2, 1), Neck()

        def forward(self, x):
            return self.neck(self.body(x))

    model = Detector()
    bare = copy.deepcopy(model)
    (place,) = plug(model, Times, 'neck')
    assert place.channels == (4, 6)
    with torch.no_grad():
        ours, theirs = model(images()), bare(images())
    for key in ('fine', 'coarse', 'again'):
        torch.testing.assert_close(ours[key], 1.5 * theirs[key])


def test_copies_have_gates_of_their_own():
    model = plugged(gate=Times)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        with torch.no_grad():
            before = model(images())
            assert torch.equal(other(images()), before)
            for name, parameter in other.named_parameters():
                if 'times' in name:
                    parameter.fill_(1.0)
            assert torch.equal(model(images()), before)
            torch.testing.assert_close(other(images()), net()(images()))
    ema = ExponentialMovingAverage(model, momentum=0.5)
    with torch.no_grad():
        assert torch.equal(ema(images()), before)


def test_sync_bn():
    model = plugged()
    with torch.no_grad():
        before, names = model(images()), gates(model)
        for convert in (nn.SyncBatchNorm.convert_sync_batchnorm, convert_sync_batchnorm):
            other = convert(copy.deepcopy(model)).eval()
            assert gates(other) == names
            assert any(isinstance(m, nn.SyncBatchNorm) for m in other.modules())
            calls = count_calls(other)
            torch.testing.assert_close(other(images()), before, rtol=1e-4, atol=1e-5)
            assert len(calls) == len(names)
            other = revert_sync_batchnorm(other)
            torch.testing.assert_close(other(images()), before, rtol=1e-4, atol=1e-5)
            assert len(calls) == 2 * len(names)


def test_conv_bn_fusion():
    """By mmcv, and by torch.fx, which goes by what runs after what."""
    from torch.fx.experimental.optimization import fuse

    for at in (EVERYWHERE, ('layer2.conv1', 'layer1.0.conv2', 'stem.0'), ('layer2.bn1', 'stem.1')):
        model = plugged(at, Times).double()
        x = images().double()
        with torch.no_grad():
            before = model(x)
            fused = fuse_conv_bn(copy.deepcopy(model))
            assert len(list(fused.modules())) != 0
            torch.testing.assert_close(fused(x), before)
            whole = copy.deepcopy(model)
            whole.layer1 = fuse(whole.layer1)
            torch.testing.assert_close(whole(x), before)


def test_activation_checkpointing():
    results = []
    for wrap in (False, True):
        model = plugged().train()
        if wrap:
            apply_activation_checkpointing(model, check_fn=lambda m: isinstance(m, Block))
        calls = count_calls(model)
        model(images()).square().sum().backward()
        results.append([p.grad for p in model.parameters()])
        assert len(calls) == 11 + wrap * 4  # those in and behind blocks run again
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('dynamo', [False, True])
def test_onnx(dynamo, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    model, file = plugged(), str(tmp_path / 'model.onnx')
    torch.onnx.export(model, (images(),), file, dynamo=dynamo, opset_version=18)
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    (out,) = session.run(None, {session.get_inputs()[0].name: images().numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(out), model(images()), rtol=1e-3, atol=1e-4)


def test_export():
    model = plugged(start='identity')
    for scale in identity_scales(model).values():
        nn.init.constant_(scale, 0.5)
    program = torch.export.export(model, (images(),))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images()), model(images()))


def test_compile():
    """In one graph, with the gates in it, also after norms were exchanged."""
    model = plugged(gate=Times)
    for made in (model, nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()):
        run = torch.compile(made, fullgraph=True, backend='eager')
        with torch.no_grad():
            torch.testing.assert_close(run(images()), model(images()))


SIX = (SE, ECA, CBAM, CoordAttention, CAT, DRTAM)


def check_compiled_training(made, **compiling):
    """In one graph, forward and backward: the gradients are those without."""
    torch._dynamo.reset()  # of one forward no more than eight variants are compiled
    results = []
    for compiled in (False, True):
        model = made().train()
        run = torch.compile(model, fullgraph=True, **compiling) if compiled else model
        run(images()).square().sum().backward()
        results.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('gate', SIX)
def test_compile_and_train(gate):
    check_compiled_training(lambda: plugged(gate=gate, start='identity'), backend='aot_eager')


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(os.environ.get('CXX') or 'g++') is None, reason='no C++ compiler for Inductor'
)
def test_inductor():
    """The six, each held in another way: what is compiled of them takes the time, once."""

    def made():
        model = net()
        for gate, at in zip(SIX, EACH_WAY, strict=True):
            plug(model, gate, at, start='identity')
        return model

    check_compiled_training(made)


def _gradients(batch, wrap=None):
    # Norms in eval mode: statistics of half a batch are not those of the batch.
    model = plugged(gate=ECA, start='identity').double()
    for scale in identity_scales(model).values():
        nn.init.constant_(scale, 0.5)
    run = model if wrap is None else wrap(model)
    optimizer = torch.optim.SGD(run.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        run(batch.double()).square().mean().backward()
        optimizer.step()
    return model, run


def _shard(model):
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device('cpu'))


def _work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2
    )
    found = {}
    for name, wrap in (('ddp', DistributedDataParallel), ('fsdp', _shard)):
        model, run = _gradients(images(4)[rank::2], wrap)
        state = run.state_dict() if name == 'fsdp' else model.state_dict()
        found[name] = {key.replace('_fsdp_wrapped_module.', ''): v for key, v in state.items()}
    torch.save(found, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    """Two steps of DDP and of FSDP are those of one process with the whole batch."""
    processes(_work, str(tmp_path))
    expected = _gradients(images(4))[0].state_dict()
    for rank in range(2):
        found = torch.load(tmp_path / f'{rank}.pth')
        for name in ('ddp', 'fsdp'):
            assert found[name].keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(found[name][key], value, rtol=1e-6, atol=1e-9)


ALONE = """
import sys
class Blocked:
    def find_spec(self, name, *rest):
        if name.partition('.')[0] in (
            'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg', 'numpy', 'timm', 'torchvision'
        ):
            raise ModuleNotFoundError(f'no {name}')
from importlib.machinery import PathFinder
find = PathFinder.find_spec
taken = ('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg', 'timm', 'torchvision')
PathFinder.find_spec = lambda name, *args: (
    None if name.partition('.')[0] in taken else find(name, *args))
import torch
import mmattn
from torch import nn
assert 'mmattn.hosts.slots' not in sys.modules
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sequential(nn.Conv2d(8, 4, 1)))
x = torch.randn(2, 3, 8, 9)
before = model.eval()(x)
for gate in (mmattn.CAT, 'SE', dict(type='CBAM', reduction=2)):
    mmattn.plug(model, gate, ['1', '2'], start='identity')
assert torch.equal(model(x), before)
assert len(mmattn.unplug(model)) == 2
for op in (mmattn.ops.channel_pool,):
    op(x)
print(sorted(name for name in sys.modules if name.partition('.')[0] in taken))
"""


def test_torch_alone(tmp_path):
    """Gates, operators and plug without mmengine or any codebase."""
    done = subprocess.run(
        [sys.executable, '-c', ALONE],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '[]'
    assert 'Warning' not in done.stderr
