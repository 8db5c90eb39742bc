"""What a plugged host computes, and what it keeps through what users do to models."""

import copy
import io
import os
import shutil

import numpy as np
import pytest
import torch
from host_cases import (
    BASIC,
    CASES,
    GATES,
    each_host,
    entry,
    everywhere,
    gates,
    image,
    in_mode,
    plugin_keys,
    randomise,
    same,
)
from mmcv.cnn.utils.fuse_conv_bn import fuse_conv_bn
from mmengine.model import (
    ExponentialMovingAverage,
    convert_sync_batchnorm,
    revert_sync_batchnorm,
)
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn

BLOCKS = {18: 8, 50: 16}
EXACT = dict(rtol=0, atol=0)
CLOSE = dict(rtol=1e-4, atol=1e-4)


def number_of_blocks(case, position):
    """How many gates one plugin at `position` makes."""
    stages = 7 if 'Mobile' in case.host else 3 if 'Shuffle' in case.host else 4
    if position == 'after_stem':
        return 1
    if position == 'after_stage':
        return stages
    if stages == 4:
        return BLOCKS[case.kwargs['depth']]
    # MobileNetV2's first block has an expansion in the CIFAR form only.
    missing = position == 'after_expand' and not case.host.endswith('_CIFAR')
    return {7: 17, 3: 16}[stages] - missing


@pytest.fixture
def plugged(request):
    """The host with one gate in every slot, the six of them taking turns."""
    return in_mode(randomise(request.param.build(everywhere(request.param))))


each_plugged = pytest.mark.parametrize('plugged', CASES.values(), ids=CASES, indirect=True)


def count_calls(modules):
    """A list that grows by one whenever one of the modules runs."""
    calls = []
    for module in modules:
        # Before it runs, as a second forward stops where it has all that backward needs.
        module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


class Flip(nn.Module):
    """A plugin whose place shows in the result: before or after an activation is not the same."""

    _abbr_ = 'flip'

    def __init__(self, in_channels, scale=-1.0):
        super().__init__()
        self.in_channels, self.scale = in_channels, scale

    def forward(self, x):
        assert x.shape[1] == self.in_channels
        return self.scale * x


class Add(Flip):
    _abbr_ = 'add'

    def forward(self, x):
        return x + self.scale


class Affine(Flip):
    """Add then Flip, or Flip then Add if the scale is negative, for 0.5 and 3."""

    _abbr_ = 'affine'

    def forward(self, x):
        return 3.0 * (x + 0.5) if self.scale > 0 else 3.0 * x + 0.5


def flip_upstream(model, position):
    """Forward hooks that do to the upstream model what Flip does in the host's slot."""

    def flip(module, nth=0, of=1):
        calls = iter(range(10**6))
        module.register_forward_hook(lambda _m, _i, out: -out if next(calls) % of == nth else None)

    stages = [
        m for name, m in model.named_children() if name.startswith('layer') and name != 'layers'
    ] or list(model.layers)[:3]
    blocks = [block for stage in stages for block in stage]
    if position == 'after_stem':
        flip(getattr(model, 'stem', None) or getattr(model, 'relu', None) or model.conv1)
    elif position == 'after_stage':
        for stage in stages:
            flip(stage)
    elif position == 'after_right_branch':
        for block in blocks:
            flip(block.branch2)
    elif position in ('after_expand', 'after_depthwise', 'after_project'):
        place = dict(after_expand=-3, after_depthwise=-2, after_project=-1)[position]
        for block in blocks:
            if len(block.conv) >= -place:
                flip(block.conv[place])
    else:
        nth = int(position[-1])
        for block in blocks:
            last = 3 if hasattr(block, 'conv3') else 2
            if nth == last:
                flip(getattr(block, f'norm{nth}'))
            else:
                # One activation module, called after every convolution and after the sum.
                flip(block.relu, nth - 1, last)


@each_host
def test_positions(case):
    for position in case.positions:
        ours, theirs = case.build([entry(Flip, position)]), randomise(case.build_upstream())
        ours.load_state_dict(theirs.state_dict(), strict=True)
        flip_upstream(theirs, position)
        found = [m for m in ours.modules() if isinstance(m, Flip)]
        assert len(found) == number_of_blocks(case, position)
        with torch.no_grad():
            same(in_mode(ours)(image()), in_mode(theirs)(image()))


@each_host
def test_list_order(case):
    """Plugins of one position run one after the other, each on the output of the one before."""
    add, times = dict(type_=Add, scale=0.5), dict(type_=Flip, scale=3.0)
    for position in case.positions:
        for pair, scale in (((add, times), 1.0), ((times, add), -1.0)):
            chain = case.build([entry(position=position, **p) for p in pair])
            single = case.build([entry(Affine, position, scale=scale)])
            chain.load_state_dict(single.state_dict(), strict=True)
            with torch.no_grad():
                same(in_mode(chain)(image(32)), in_mode(single)(image(32)), **CLOSE)


@each_host
def test_upstream_weights_load(case, tmp_path):
    model, weights = case.build(everywhere(case)), randomise(case.build_upstream()).state_dict()
    assert len(gates(model)) == sum(number_of_blocks(case, p) for p in case.positions)
    # PyTorch fills in a norm's counter by itself.
    theirs = {key for key in plugin_keys(model) if not key.endswith('num_batches_tracked')}
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) == theirs and not unexpected

    file = tmp_path / 'upstream.pth'
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in weights.items()}}, file)
    pretrained = case.build(
        everywhere(case), init_cfg=dict(type='Pretrained', checkpoint=str(file), prefix='backbone.')
    )
    pretrained.load_state_dict(kept)
    pretrained.init_weights()
    for key, value in pretrained.state_dict().items():
        torch.testing.assert_close(value, weights.get(key, kept[key]), **EXACT)

    torch.save(weights, file)
    load_checkpoint(model, str(file), strict=False)
    loaded = model.state_dict()
    same([loaded[key] for key in weights], weights.values())


def test_weights_move_between_codebases():
    models = [CASES[f'{scope}-resnet50'] for scope in ('mmpretrain', 'mmdet', 'mmseg')]
    models = [
        case.build(everywhere(case, each=2), **kwargs)
        for case, kwargs in zip(
            models, ({}, {}, dict(strides=(1, 2, 2, 2), dilations=(1,) * 4)), strict=True
        )
    ]
    outs = []
    for model in models:
        model.load_state_dict(randomise(models[0]).state_dict(), strict=True)
        with torch.no_grad():
            outs.append(in_mode(model)(image()))
    same(outs[0], outs[1])
    same(outs[0], outs[2])


@pytest.mark.parametrize(
    'cfg',
    [
        dict(type='ContextBlock', ratio=1 / 4),
        dict(type='GeneralizedAttention', num_heads=2, attention_type='0010', kv_stride=2),
        dict(type='NonLocal2d', reduction=2),
    ],
    ids=lambda cfg: cfg['type'],
)
def test_plugins_of_mmdet(cfg):
    """Names, values and the meaning of postfix are those of MMDetection's own slots."""
    pytest.importorskip('mmdet')
    case = CASES['mmdet-resnet50']
    plugins = [
        dict(cfg=dict(cfg, postfix=1), stages=(False, True, True, True), position='after_conv3'),
        dict(cfg=dict(cfg, postfix=2), stages=(False, False, True, True), position='after_conv3'),
        dict(cfg=dict(cfg), stages=(True, True, False, False), position='after_conv2'),
    ]
    ours = case.build(plugins)
    theirs = randomise(case.build_upstream(plugins=copy.deepcopy(plugins)))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        same(in_mode(ours)(image()), in_mode(theirs)(image()))


@each_plugged
def test_sync_bn(plugged):
    """Converted and reverted, every gate is still there and computes what it did."""
    with torch.no_grad():
        before, names = plugged(image()), gates(plugged).keys()
        for convert in (nn.SyncBatchNorm.convert_sync_batchnorm, convert_sync_batchnorm):
            model = in_mode(convert(copy.deepcopy(plugged)))  # some converted norms train
            assert gates(model).keys() == names
            assert not any(type(m) in (nn.BatchNorm1d, nn.BatchNorm2d) for m in model.modules())
            # Gates with such norms call their layers, in place of one operator.
            same(model(image()), before, **CLOSE)
            model = revert_sync_batchnorm(model)
            assert gates(model).keys() == names
            assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
            same(model(image()), before, **CLOSE)
            results = []
            for trained in (model, copy.deepcopy(plugged)):
                torch.manual_seed(0)  # stochastic depth
                results.append(in_mode(trained, True)(image()))
            # In training, norms over a few values make much of what rounding differs by.
            same(*results, rtol=1e-2, atol=2e-3)


@each_host
def test_conv_bn_fusion(case):
    """Fusion goes by the order of children: no gate may come between a conv and its norm."""
    # Two for each host, others for the next: over the hosts every gate is in every position.
    turn = list(CASES.values()).index(case)
    for shift in (turn % len(GATES), (turn + 5) % len(GATES)):
        types = GATES[shift:] + GATES[:shift]
        model = in_mode(randomise(case.build(everywhere(case, types)))).double()
        x = image(32).double()
        with torch.no_grad():
            before, names = model(x), gates(model).keys()
            fused = fuse_conv_bn(model)
            assert gates(fused).keys() == names
            left = [n for n, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)]
            assert not left, 'every 2-D norm follows a convolution'
            # A gate between a conv and its norm changes everything. Rounding of 1e-15 at the input
            # moves some of these random networks by 1e-7, as fusion does.
            same(fused(x), before, rtol=1e-5, atol=1e-7)


@each_plugged
def test_ema(plugged):
    ema = ExponentialMovingAverage(plugged, momentum=0.5)
    assert gates(ema.module).keys() == gates(plugged).keys()
    with torch.no_grad():
        same(ema(image()), plugged(image()))
        ema.update_parameters(plugged)
        start = {k: p.clone() for k, p in plugged.named_parameters()}
        for parameter in plugged.parameters():
            parameter.add_(1.0)
        ema.update_parameters(plugged)
    for name, parameter in ema.module.named_parameters():
        torch.testing.assert_close(parameter, start[name] + 0.5)


@each_plugged
def test_saved_whole(plugged):
    file = io.BytesIO()
    torch.save(plugged, file)
    file.seek(0)
    with torch.no_grad():
        same(torch.load(file, weights_only=False)(image()), plugged(image()))


@each_host
def test_checkpointing(case):
    """`with_cp` runs every gate a second time in backward, and the gradients are the same."""
    results = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = in_mode(randomise(case.build(everywhere(case), with_cp=with_cp)), True)
        calls = count_calls(gates(model).values())
        x = image().requires_grad_()
        torch.manual_seed(0)  # stochastic depth
        loss = sum(out.square().mean() for out in model(x))
        assert len(calls) == len(gates(model))
        loss.backward()
        assert len(calls) == (1 + with_cp) * len(gates(model))
        results.append([loss, x.grad, *(p.grad for p in model.parameters())])
    assert all(grad is not None for grad in results[0])
    same(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(
    shutil.which(os.environ.get('CXX') or 'g++') is None, reason='no C++ compiler for Inductor'
)
def test_compile():
    case = CASES['mmpretrain-resnet18']
    model = case.build(
        everywhere(case), num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,)
    )
    results = []
    for compiled in (False, True):
        copied = in_mode(randomise(copy.deepcopy(model)), True)
        run = torch.compile(copied, fullgraph=True) if compiled else copied
        x = image(32).requires_grad_()
        outs = run(x)
        sum(out.square().mean() for out in outs).backward()
        results.append([*outs, x.grad, *(p.grad for p in copied.parameters())])
    same(*results, rtol=1e-3, atol=1e-4)


def test_onnx(tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    case = CASES['mmpretrain-resnet18']
    two = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
    model = in_mode(randomise(case.build(everywhere(case, each=3), **two)))
    assert {type(g).__name__ for g in gates(model).values()} == set(GATES)
    file = str(tmp_path / 'model.onnx')
    torch.onnx.export(model, image(), file, dynamo=False, opset_version=17)
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    outs = session.run(None, {session.get_inputs()[0].name: image().numpy()})
    with torch.no_grad():
        expected = [out.numpy() for out in model(image())]
    for ours, theirs in zip(outs, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_init_of_residuals_leaves_gates_alone():
    """Residual norms start at zero, as upstream decides by the block's class; gates do not."""
    for name in (
        'mmpretrain-resnet18',
        'mmpretrain-resnet50',
        'mmdet-resnet18',
        'mmdet-resnet50',
        'mmseg-resnet18',
        'mmseg-resnet50',
    ):
        case = CASES[name]
        model = case.build(everywhere(case, ('SE', 'CBAM')))
        model.init_weights()
        last = 'bn2' if case.blocks == BASIC else 'bn3'
        theirs = plugin_keys(model)
        for key, value in model.state_dict().items():
            if key.endswith(f'.{last}.weight'):
                assert not value.any(), key
            elif key in theirs and 'weight' in key:
                assert value.any(), key


def test_init_of_shufflenet_leaves_gates_alone():
    case = CASES['mmpretrain-shufflenet']
    model = case.build([entry('CAT', p) for p in case.positions])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.init_weights()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and not changed & plugin_keys(model)


def test_layer_wise_learning_rates():
    case = CASES['mmpretrain-resnet50']
    model = case.build(everywhere(case, ('CBAM',)))
    depths = {
        name: model.get_layer_depth(f'backbone.{name}', 'backbone.')
        for name, _ in model.named_parameters()
    }
    assert depths['after_stem.cbam.conv.weight'] == depths['conv1.weight'] == (0, 8)
    for stage, last in enumerate((2, 3, 5, 2), 1):
        prefix = f'layer{stage}.after_stage.'
        found = {d for name, d in depths.items() if name.startswith(prefix)}
        assert found == {depths[f'layer{stage}.{last}.conv3.weight']}
