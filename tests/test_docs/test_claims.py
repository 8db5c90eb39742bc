"""What the documentation says of other libraries is so in the versions installed here."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from doc_pages import ROOT

import mmattn


def same(gate, other, channels):
    """Both compute the same with the same values in their parameters."""
    ours, theirs = [*gate.parameters()], [*other.parameters()]
    assert len(ours) == len(theirs)
    with torch.no_grad():
        for a, b in zip(ours, theirs, strict=True):
            b.copy_(a.normal_().reshape(b.shape))
            if b.shape[1:2] == (2,):  # maximum and average: the other way round in timm's CBAM
                b.copy_(b.flip(1))
    x = torch.randn(2, channels, 6, 5)
    torch.testing.assert_close(gate(x), other(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('channels', [24, 64])
def test_timm_has_the_same_gates(channels):
    layers = pytest.importorskip('timm.layers')
    from timm.layers.cbam import CbamModule
    from timm.layers.coord_attn import CoordAttn

    hidden = dict(rd_channels=max(1, channels // 16))
    same(mmattn.SE(channels), layers.SEModule(channels, bias=False, **hidden), channels)
    same(mmattn.ECA(channels), layers.EcaModule(channels), channels)
    same(mmattn.CBAM(channels, bias=False), CbamModule(channels, **hidden), channels)
    hidden = max(8, channels // 32)
    other = CoordAttn(channels, rd_channels=hidden, bias=True)
    same(mmattn.CoordAttention(channels), other, channels)


def test_timm_has_neither_paper():
    create = pytest.importorskip('timm.layers.create_attn')
    for name in ('cat', 'drtam'):
        with pytest.raises(AssertionError):
            create.get_attn(name)
    names = set(re.findall(r"attn_type == '(\w+)'", inspect.getsource(create.get_attn)))
    assert len(names - {'se', 'eca', 'cbam', 'coord'}) == 17


@pytest.mark.slow
def test_timm_has_networks_and_weights():
    timm = pytest.importorskip('timm')
    assert len(timm.list_models()) > 1300
    weights = {name.split('.')[0] for name in timm.list_pretrained()}
    assert {'seresnet50', 'ecaresnet50d'} <= weights


def test_plugins_of_mmdetection():
    """Those that its own ResNet can hold, and the checkpoints that its model zoo has of them."""
    mmdet = pytest.importorskip('mmdet')
    from mmdet.registry import MODELS

    for name in ('ContextBlock', 'NonLocal2d', 'GeneralizedAttention', 'DropBlock'):
        parameters = inspect.signature(MODELS.get(name)).parameters
        assert 'in_channels' in parameters or 'kwargs' in parameters
    zoo = Path(mmdet.__file__).parent / '.mim' / 'configs'
    if not zoo.is_dir():
        pytest.skip('mmdetection was installed without its model zoo')
    for folder in ('gcnet', 'empirical_attention'):
        assert 'Weights: https' in (zoo / folder / 'metafile.yml').read_text(encoding='utf-8')


def test_our_hosts():
    from mmattn.hosts import mmdet, mmpretrain, mmseg

    hosts = {
        value
        for module in (mmdet, mmpretrain, mmseg)
        for name, value in vars(module).items()
        if name.startswith('Plugin')
        and issubclass(value, mmpretrain.PluginHost)
        and value.__module__ == module.__name__
    }
    assert f'3 families, {len(hosts)} hosts' in (ROOT / 'README.md').read_text(encoding='utf-8')


def test_upstream_resnets_and_plugins():
    """Short blocks take none; mmpretrain's takes none at all; mmsegmentation's keeps the last."""
    mmdet = pytest.importorskip('mmdet.models.backbones.resnet')
    mmseg = pytest.importorskip('mmseg.models.backbones.resnet')
    mmpretrain = pytest.importorskip('mmpretrain.models.backbones.resnet')
    plugins = [dict(cfg=dict(type='SE'), position='after_conv2')]
    for module in (mmdet, mmseg):
        with pytest.raises(AssertionError, match='Not implemented yet'):
            module.ResNet(18, plugins=plugins)
    assert 'plugins' not in inspect.signature(mmpretrain.ResNet).parameters


@pytest.mark.parametrize('codebase, kept', [('mmdet', 6.0), ('mmseg', 3.0)])
def test_several_plugins_of_one_position_upstream(codebase, kept):
    resnet = pytest.importorskip(f'{codebase}.models.backbones.resnet')

    class Times(torch.nn.Module):
        def __init__(self, in_channels, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            return self.factor * x

    plugins = [
        dict(cfg=dict(type=Times, factor=f, postfix=str(f)), position='after_conv1') for f in (2, 3)
    ]
    block = resnet.Bottleneck(8, 2, plugins=plugins)
    assert float(block.forward_plugin(torch.ones(1), block.after_conv1_plugin_names)) == kept
