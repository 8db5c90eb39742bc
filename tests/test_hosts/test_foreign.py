"""Other people's layers in slots: timm's, mmcv's, mmdet's and mmpretrain's."""

import importlib

import pytest
import torch
from host_cases import CASES, entry, image, randomise
from torch import nn

from mmattn.attention import timm_attention
from mmattn.attention.timm_attention import TimmAttention
from mmattn.hosts.slots import CHANNELS, Slots

HOST = CASES['mmdet-resnet18']
WIDTHS = dict(base_channels=16, stem_channels=16)
GE = dict(use_mlp=False)  # by default it fails in timm 1.0, which says why
TIMM = [dict(name=name, **(GE if name == 'ge' else {})) for name in timm_attention.NAMES]
# Types, the arguments that the toy widths need, and where such a class is from.
FOREIGN = {
    **{f'timm {args["name"]}': dict(type='TimmAttention', **args) for args in TIMM},
    'mmcv GC': dict(type='ContextBlock', ratio=1 / 4),
    'mmcv non-local': dict(type='NonLocal2d', reduction=2),
    'mmcv generalised': dict(
        type='GeneralizedAttention', num_heads=4, attention_type='1111', kv_stride=2
    ),
    'mmcv criss-cross': dict(type='CrissCrossAttention'),
    'mmdet SE': dict(type='mmdet.models.layers.SELayer', ratio=4),
    'mmdet dynamic ReLU': dict(type='mmdet.models.layers.DyReLU', ratio=2),
    'mmdet RTMDet': dict(
        type='mmdet.models.layers.csp_layer.ChannelAttention', postfix='_of_rtmdet'
    ),
    'mmpretrain SE': dict(type='mmpretrain.models.utils.SELayer', ratio=4),
    'mmseg SE': dict(type='mmseg.models.utils.SELayer', ratio=4),
    'timm by its class': dict(type='timm.layers.GlobalContext'),
}


def build(cfg):
    torch.manual_seed(0)
    cfg = dict(cfg)
    codebase = cfg['type'].partition('.')[0]
    if codebase in ('mmdet', 'mmpretrain', 'mmseg'):
        pytest.importorskip(codebase)
    if cfg['type'] == 'CrissCrossAttention':
        importlib.import_module('mmcv.ops')
    # Of 32 channels: enough for four heads and the groups of timm's layers.
    plugin = entry(cfg.pop('type'), 'after_conv2', (False, True, False, False), **cfg)
    return HOST.build([plugin], **WIDTHS)


@pytest.mark.parametrize('name', FOREIGN)
def test_it_runs_and_trains_in_a_slot(name):
    model = randomise(build(FOREIGN[name]))
    keys, known = set(model.state_dict()), set(HOST.build_upstream(**WIDTHS).state_dict())
    assert known <= keys
    model.train()
    outs = model(image(64))
    assert [out.shape[1] for out in outs] == [16, 32, 64, 128]
    sum(out.square().mean() for out in outs).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert set(model.state_dict()) == keys
    model.eval()
    wide = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = model(wide)
        assert before[1].shape[-2:] == (8, 12)
        # It does something, also where it starts as the identity (mmcv's GC and non-local).
        for key, parameter in model.named_parameters():
            if key not in known:
                parameter.add_(torch.randn_like(parameter))
        assert torch.equal(model(wide)[1], before[1]) is (keys == known)


def test_the_names_are_timms():
    """All of `create_attn`; those that are refused say why."""
    source = importlib.import_module('timm.layers.create_attn')
    known = {*timm_attention.NAMES, *timm_attention.UNFIT}
    assert len(timm_attention.NAMES) == 18 and not {*timm_attention.NAMES} & {*timm_attention.UNFIT}
    for name in known:
        assert source.get_attn(name) is not None
    for name, reason in timm_attention.UNFIT.items():
        with pytest.raises(ValueError, match=reason):
            TimmAttention(64, name)
    with pytest.raises(ValueError, match="name must be one of se, ese, .*, got 'senet'$"):
        TimmAttention(64, 'senet')


@pytest.mark.parametrize(
    'args, message',
    (
        (dict(name='sk', out_channels=32), 'makes .2, 32, 9, 13. of .2, 64, 9, 13.'),
        (dict(name='gc', ratio=3), "timm's gc refuses 64 channels, or its arguments: .*ratio"),
        (dict(name='gca', rd_ratio='8'), "timm's gca refuses 64 channels, or its arguments: "),
        (dict(in_channels=23, name='sk'), "timm's sk refuses 23 channels, .*: no reason given"),
        (dict(in_channels=0), 'in_channels must be an integer >= 1'),
    ),
)
def test_what_timm_refuses(args, message):
    with pytest.raises(ValueError, match=message) as info:
        TimmAttention(**{'in_channels': 64, **args})
    assert '\n' not in str(info.value)


def test_in_a_slot_it_says_the_same():
    with pytest.raises(ValueError, match=r"^plugin 'TimmAttention' at after_conv2, 16 channels: "):
        HOST.build([entry('TimmAttention', 'after_conv2', name='halo')], **WIDTHS)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'timm.layers', None)
    with pytest.raises(ImportError, match='TimmAttention needs timm: pip install timm'):
        TimmAttention(64)


@pytest.mark.parametrize('called', CHANNELS)
def test_channels_by_any_name(called):
    """A class that has another name for its channels; the host fills in that."""
    scope = {'nn': nn}
    exec(
        f'class Layer(nn.Conv2d):\n    def __init__(self, {called}, width=1):\n'
        f'        super().__init__({called}, {called}, width)',
        scope,
    )
    positions = ('after_conv3', 'after_stage', 'after_stem')
    (plugin,) = Slots([entry(scope['Layer'], 'after_conv3')], 'Host', positions, 4).plugins
    parent = nn.Module()
    assert getattr(parent, plugin.add_to(parent, 24)).in_channels == 24
    message = f"plugin 'Layer': {called} is filled in by the host; allowed: width"
    with pytest.raises(ValueError, match=message):
        Slots([entry(scope['Layer'], 'after_conv3', **{called: 8})], 'Host', positions, 4)


def test_init_cfg_of_a_layer_that_takes_anything():
    own = dict(type='Constant', layer='Conv2d', val=3)
    model = build(dict(type='TimmAttention', name='nl', init_cfg=own))
    for layer in model.modules():
        if isinstance(layer, TimmAttention):
            assert not (layer.attn.t.weight == 3).any()
    model.init_weights()
    convs = [
        layer
        for module in model.modules()
        if isinstance(module, TimmAttention)
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    assert convs and all((conv.weight == 3).all() for conv in convs)
