"""timm's gated ResNets: the same output in our hosts, without a download."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from classifiers import assert_same, image, randomised
from mmengine.registry import DefaultScope

from mmattn.converters import NAMES, files, from_timm
from mmattn.converters import timm as converters
from mmattn.runs import checkpoint, pretrained

pytest.importorskip('mmpretrain')
timm = pytest.importorskip('timm')
TOOL = Path(__file__).parents[2] / 'tools' / 'model_converters' / 'timm_to_mmattn.py'
SLOW = ('seresnet101', 'seresnet152', 'seresnet152d', 'ecaresnet101d')


@pytest.mark.parametrize(
    'name',
    [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in NAMES],
)
def test_the_same_output(name):
    model = randomised(timm.create_model(name))
    assert_same(model, from_timm(name, model.state_dict()), model.num_features)


@pytest.mark.parametrize('codebase', ('mmdet', 'mmseg'))
@pytest.mark.parametrize('name', ('seresnet18', 'ecaresnet50d'))
def test_the_other_codebases(codebase, name):
    """Their ResNet-D calls its layers otherwise; its outputs are the stages' as they are."""
    registry = pytest.importorskip(f'{codebase}.registry').MODELS
    model = randomised(timm.create_model(name, num_classes=0))
    converted = from_timm(name, model.state_dict(), codebase)
    if codebase == 'mmseg':
        converted.backbone['norm_cfg'] = dict(type='BN')
    with DefaultScope.overwrite_default_scope(codebase):
        host = registry.build(converted.backbone)
    own = SimpleNamespace(backbone=host)
    own.backbone.load_state_dict(
        {k.removeprefix('backbone.'): v for k, v in converted.state_dict.items()}
    )
    host.double().eval()
    with torch.no_grad():
        x = image()
        expected = model.forward_intermediates(x, intermediates_only=True)[1:]
        for ours, theirs in zip(host(x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_gated_detector_starts_from_it(tmp_path):
    """By `--pretrained`, as from one of our ImageNet rows: every weight of it and of its gates."""
    registry = pytest.importorskip('mmdet.registry').MODELS
    model = randomised(timm.create_model('seresnet18')).float()
    converted = from_timm('seresnet18', model.state_dict(), 'mmdet')
    path = files.write(tmp_path / 'se18.pth', converted, 'timm seresnet18')
    backbone = dict(converted.backbone, frozen_stages=1, norm_eval=True)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = torch.nn.Module()
        detector.backbone = registry.build(backbone)
    pretrained.load_backbone(detector, path)
    for name, value in detector.backbone.state_dict().items():
        assert torch.equal(value, converted.state_dict[f'backbone.{name}']), name
    assert torch.equal(
        detector.backbone.layer2[0].se.mlp[0].weight, model.layer2[0].se.fc1.weight.flatten(1)
    )
    # The file as it is says what converts it.
    torch.save(model.state_dict(), tmp_path / 'timm.pth')
    with pytest.raises(ValueError, match='timm_to_mmattn.py converts weights of timm'):
        pretrained.load_backbone(detector, tmp_path / 'timm.pth')
    # The gate of another width is refused.
    backbone['plugins'] = [dict(cfg=dict(type='SE', bias=True), position='after_conv2')]
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector.backbone = registry.build(backbone)
    with pytest.raises(ValueError, match='of another shape: layer1.0.se.mlp.0.bias .*8,'):
        pretrained.load_backbone(detector, path)


@pytest.mark.parametrize(
    'name, reason',
    (
        ('seresnet50t', 'its stem has three widths'),
        ('ecaresnet26t.ra2_in1k', 'its stem has three widths'),
        ('seresnext50_32x4d', 'its convolutions are in groups'),
        ('ecaresnet50d_pruned', 'its blocks were pruned'),
        ('legacy_seresnet50', 'its max pool has no padding'),
        ('ecaresnetlight', 'no host has its numbers of blocks'),
        ('ecaresnet269d', 'no host has its numbers of blocks'),
        ('seresnetaa50d', 'it blurs'),
        ('resnetrs50', 'its stem pools by a convolution'),
        ('gcresnet50t', 'its stem has three widths'),
        ('vit_base', 'no gated ResNet of timm'),
        ('', 'no gated ResNet of timm'),
    ),
)
def test_names_that_are_refused(name, reason):
    with pytest.raises(converters.NotSupported, match=reason) as info:
        from_timm(name, {})
    assert str(info.value).endswith(f'supported: {", ".join(NAMES)}')


def test_every_gated_resnet_of_timm_is_listed_or_refused_for_a_reason():
    for name in timm.list_models(['seres*', 'legacy_se*', 'ecares*', 'resnetrs*', 'senet*']):
        if name not in NAMES and not name.endswith('ts'):
            with pytest.raises(converters.NotSupported) as info:
                converters.check_name(name)
            assert 'no gated ResNet of timm' not in str(info.value), name


@pytest.mark.parametrize(
    'change, message',
    (
        (lambda w: w.clear(), r'\(0, 0, 0, 0\) blocks'),
        (lambda w: w.pop('layer3.1.se.fc2.bias'), 'missing: backbone.layer3.1.se.mlp.2.bias'),
        (lambda w: w.update({'layer3.1.se.fc3.bias': torch.zeros(1)}), 'the gate has none of that'),
        (lambda w: w.update({'layer3.1.x': torch.zeros(1)}), 'unexpected: backbone.layer3.1.x'),
        (lambda w: w.update({'conv1.weight': torch.zeros(1)}), 'another shape: backbone.conv1'),
        (
            lambda w: [w.pop(k) for k in [*w] if '.se.' in k],
            'there is no SE in these weights: no block has a se',
        ),
        (
            lambda w: w.update({'layer3.1.se.fc1.weight': torch.zeros(8, 256, 1, 1)}),
            'the SE of stage 3 are not alike',
        ),
    ),
)
def test_weights_of_another_network(change, message):
    weights = timm.create_model('seresnet18').state_dict()
    change(weights)
    with pytest.raises(ValueError, match=message) as info:
        from_timm('seresnet18', weights)
    assert '\n' not in str(info.value)


# ------------------------------------------------------------------------------------ the tool


@pytest.fixture
def tool(tmp_path, monkeypatch, capsys):
    """Runs it in an empty folder: its exit code, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['timm_to_mmattn.py', *map(str, args)])
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr()

    return run


@pytest.fixture(scope='module')
def weights():
    return timm.create_model('seresnet18').state_dict()


def test_the_tool(tool, tmp_path, weights):
    torch.save(dict(state_dict={f'module.{k}': v for k, v in weights.items()}), 'x.pth')
    code, said = tool('seresnet18', '--file', 'x.pth')
    assert code == 0 and "'type': 'PluginResNet'" in said.out
    assert 'mean [123.675, 116.28, 103.53]' in said.out
    found = torch.load('seresnet18_mmattn.pth', weights_only=True)
    assert found.keys() == {'meta', 'state_dict'}
    json.dumps(found['meta'])  # plain
    assert found['meta']['backbone']['depth'] == 18
    assert torch.equal(found['state_dict']['head.fc.bias'], weights['fc.bias'])
    # What is there is left as it is.
    before = (tmp_path / 'seresnet18_mmattn.pth').read_bytes()
    code, said = tool('seresnet18', '--file', 'x.pth')
    assert code == 2 and said.err.count('\n') == 1 and 'exists' in said.err
    assert (tmp_path / 'seresnet18_mmattn.pth').read_bytes() == before
    code, _ = tool('seresnet18', '--file', 'x.pth', '--out', 'y.safetensors')
    assert code == 0
    assert checkpoint.load('y.safetensors')['meta']['source'] == 'x.pth'


@pytest.mark.parametrize(
    'args, message',
    (
        (('seresnext50_32x4d',), 'supported: seresnet18'),
        (('seresnet18',), 'timm has no weights of seresnet18; give yours by --file'),
        (('seresnet50.a9',), 'timm has no weights of seresnet50.a9; it has seresnet50.a1_in1k'),
        (('seresnet18', '--file', 'none.pth'), 'none.pth'),
        (('seresnet18', '--file', '.'), ''),
    ),
)
def test_mistakes_are_one_line(tool, args, message):
    code, said = tool(*args)
    assert code == 2 and said.err.count('\n') == 1 and message in said.err and not said.out


class Evil:
    def __reduce__(self):
        return Path.write_text, (Path('ran'), 'code')


def test_code_in_a_file_is_not_run(tool, tmp_path):
    torch.save({'conv1.weight': torch.zeros(1), 'x': Evil()}, 'evil.pth')
    code, said = tool('seresnet18', '--file', 'evil.pth')
    assert code == 2 and said.err.count('\n') == 1 and not (tmp_path / 'ran').exists()


def test_where_published_weights_come_from(tool, monkeypatch, weights, tmp_path):
    """Hugging Face's hub first, in the form that holds no code, then the release's own file."""
    hub = pytest.importorskip('huggingface_hub')
    asked = []

    def from_hub(repository, name):
        asked.append((repository, name))
        raise OSError('no network')

    def from_release(url, path):
        asked.append(url)
        torch.save(weights, path)

    monkeypatch.setattr(hub, 'hf_hub_download', from_hub)
    monkeypatch.setattr(torch.hub, 'download_url_to_file', from_release)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    code, said = tool('seresnet50.ra2_in1k')
    assert asked[0] == ('timm/seresnet50.ra2_in1k', 'model.safetensors')
    assert asked[1].startswith('https://github.com/') and 'seresnet50' in asked[1]
    # These are another network's, which their name's hash says.
    assert code == 2 and 'its SHA-256 is' in said.err and len(asked) == 2

    def gone(url, path):
        raise OSError('gone')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', gone)
    code, said = tool('seresnet152d')
    assert code == 2 and 'could not be loaded: gone' in said.err

    safetensors = pytest.importorskip('safetensors.torch')
    safetensors.save_file(weights, 'hub.safetensors')
    monkeypatch.setattr(hub, 'hf_hub_download', lambda *args: 'hub.safetensors')
    code, said = tool('seresnet50')
    assert code == 2 and 'seresnet50 is a ResNet-50, these weights a ResNet-18' in said.err
