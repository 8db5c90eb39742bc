"""A wrong entry of `plugins` is refused in one line: what is wrong, and what is allowed."""

import pytest
import torch
from host_cases import BASIC, BOTTLENECK, CASES, each_host, entry, gates
from mmcv.cnn import build_plugin_layer
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmattn.attention import CAT, SE
from mmattn.hosts.slots import Plugin, Slots

R50 = CASES['mmpretrain-resnet50']
R18 = CASES['mmpretrain-resnet18']
MOBILE = CASES['mmpretrain-mobilenet']


def slots(plugins, positions=BOTTLENECK, num_stages=4):
    return Slots(plugins, 'Host', (*positions, 'after_stage', 'after_stem'), num_stages)


ALL = 'allowed: after_conv1, after_conv2, after_conv3, after_stage, after_stem'
TYPES = (
    'CAT, CBAM, ContextBlock, CoordAttention, DRTAM, ECA, EMA, GeneralizedAttention, NonLocal2d, '
    'SE, SimAM, TimmAttention, TripletAttention'
)
REFUSED = {
    'no list': (entry('SE', 'after_conv3'), 'plugins must be a list of dicts', 'cfg, position'),
    'no dict': (['SE'], "plugin 'SE': must be a dict", 'allowed: cfg, position, stages'),
    'unknown key': (
        [dict(entry('SE', 'after_conv3'), stage=(True,) * 4)],
        "plugin 'SE': unknown key 'stage'; did you mean 'stages'?",
        'allowed: cfg, position, stages',
    ),
    'no cfg': ([dict(position='after_conv3')], 'cfg must be a dict with a type, got None', TYPES),
    'cfg no dict': ([dict(cfg='SE', position='after_conv3')], "got 'SE'", TYPES),
    'no type': ([dict(cfg=dict(ratio=4), position='after_conv3')], "got {'ratio': 4}", TYPES),
    'unknown type': (
        [entry('CBMA', 'after_conv3')],
        "plugin 'CBMA': no such type is registered; did you mean 'CBAM'?",
        TYPES,
    ),
    'type is a module': ([entry('json', 'after_conv3')], "plugin 'json': no such type", TYPES),
    'type is no name': ([entry(3, 'after_conv3')], 'plugin 3: no such type', TYPES),
    'type is no plugin': (
        [entry('ReLU6', 'after_conv3')],
        "plugin 'ReLU6': no plugin, as it takes no in_channels",
        TYPES,
    ),
    'in_channels given': (
        [entry('SE', 'after_conv3', in_channels=64)],
        "plugin 'SE': in_channels is filled in by the host",
        'allowed: reduction, bias, impl',
    ),
    'unknown argument': (
        [entry('SE', 'after_conv3', reductoin=4)],
        "plugin 'SE': unknown argument 'reductoin'; did you mean 'reduction'?",
        'allowed: reduction, bias, impl',
    ),
    'postfix no name': (
        [entry('SE', 'after_conv3', postfix=1.5)],
        "plugin 'SE': postfix 1.5",
        'an int or a str',
    ),
    'no position': ([dict(cfg=dict(type='SE'))], "plugin 'SE': has no position", ALL),
    'unknown position': (
        [entry('SE', 'after_conv4')],
        "plugin 'SE': Host has no position 'after_conv4'; did you mean",
        ALL,
    ),
    'position no name': ([entry('SE', ['after_conv3'])], "has no position ['after_conv3']", ALL),
    'stages short': (
        [entry('SE', 'after_conv3', (True,) * 3)],
        "plugin 'SE' at after_conv3: stages has 3 flags, but Host has 4 stages",
        'allowed: None or 4 of True and False',
    ),
    'stages numbers': (
        [entry('SE', 'after_conv3', (1, 0, 1, 1))],
        "plugin 'SE' at after_conv3: stages must hold bools, got (1, 0, 1, 1)",
        'allowed: None or 4 of True and False',
    ),
    'stages one bool': (
        [entry('SE', 'after_conv3', True)],
        'stages must hold bools, got True',
        'allowed: None or 4 of True and False',
    ),
    'stages a word': (
        [entry('SE', 'after_conv3', 'TTTT')],
        "stages must hold bools, got 'TTTT'",
        'allowed: None or 4 of True and False',
    ),
    'norm_eval a number': (
        [dict(entry('SE', 'after_conv3'), norm_eval=1)],
        "plugin 'SE' at after_conv3: norm_eval 1",
        "allowed: 'host', True, False",
    ),
    'norm_cfg a dict': (
        [dict(entry('SE', 'after_conv3'), norm_cfg=dict(type='GN'))],
        "plugin 'SE' at after_conv3: norm_cfg {'type': 'GN'}",
        "allowed: 'host', None",
    ),
    'freeze None': (
        [dict(entry('SE', 'after_conv3'), freeze=None)],
        "plugin 'SE' at after_conv3: freeze None",
        'allowed: True, False',
    ),
    'switch misspelt': (
        [dict(entry('SE', 'after_conv3'), norm_evla=True)],
        "plugin 'SE': unknown key 'norm_evla'; did you mean 'norm_eval'?",
        'allowed: cfg, position, stages, norm_eval, norm_cfg, freeze',
    ),
    'init_cfg no dict': (
        [entry('SE', 'after_conv3', init_cfg='Kaiming')],
        "plugin 'SE': init_cfg must be a dict, or a list of dicts, with a type, got 'Kaiming'",
        'Constant, Kaiming, Normal',
    ),
    'init_cfg unknown': (
        [entry('SE', 'after_conv3', init_cfg=[dict(type='Kaimign')])],
        "got [{'type': 'Kaimign'}]",
        'Constant, Kaiming, Normal',
    ),
    'stem stages': (
        [entry('SE', 'after_stem', (True,) * 4)],
        "plugin 'SE' at after_stem: takes no stages",
        'allowed: None',
    ),
}


@pytest.mark.parametrize('plugins, wrong, allowed', REFUSED.values(), ids=REFUSED)
def test_refused(plugins, wrong, allowed):
    with pytest.raises(ValueError) as info:
        slots(plugins)
    message = str(info.value)
    assert wrong in message and allowed in message and '\n' not in message


@pytest.mark.parametrize(
    'defaults, message',
    [
        ('norm_eval', "plugin_defaults must be a dict, got 'norm_eval'; keys allowed: norm_eval, "),
        (dict(norm=True), "plugin_defaults: no key 'norm'; .*allowed: norm_eval, norm_cfg, freeze"),
        (dict(stages=None), "plugin_defaults: no key 'stages'; "),
        (dict(freeze='no'), "plugin_defaults: freeze 'no'; allowed: True, False"),
    ],
)
@each_host
def test_defaults_are_checked(case, defaults, message):
    """Also where no plugin needs them."""
    with pytest.raises(ValueError, match=message):
        case.build(plugin_defaults=defaults)


@each_host
def test_each_host_names_its_positions(case):
    with pytest.raises(ValueError, match=f'{case.host}.* has no position .after_lunch.') as info:
        case.build([entry('SE', 'after_lunch')])
    assert str(info.value).endswith(f'allowed: {", ".join(case.positions)}')


def test_basic_blocks_have_no_third_convolution():
    with pytest.raises(ValueError, match='PluginResNet-18 has no position .after_conv3.; did you'):
        R18.build([entry('SE', 'after_conv3')])


@pytest.mark.parametrize(
    'name, stages',
    [('mmpretrain-resnet50', 4), ('mmpretrain-mobilenet', 7), ('mmpretrain-shufflenet', 3)],
)
def test_number_of_stages(name, stages):
    case = CASES[name]
    for wrong in (stages - 1, stages + 1):
        with pytest.raises(ValueError, match=f'has {wrong} flags, but .* has {stages} stages'):
            case.build([entry('SE', case.blocks[-1], (True,) * wrong)])
    flags = (True, *(False,) * (stages - 1))
    found = gates(case.build([entry('SE', case.blocks[-1], flags)]))
    assert found and all(name.startswith(('layer1.', 'layers.0.')) for name in found)


def test_num_stages_of_a_shorter_resnet():
    short = dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,))
    model = R50.build([entry('SE', 'after_stage', (False, True, True))], **short)
    assert list(gates(model)) == ['layer2.after_stage.se', 'layer3.after_stage.se']
    with pytest.raises(ValueError, match='PluginResNet-50 has 3 stages'):
        R50.build([entry('SE', 'after_stage', (True,) * 4)], **short)


@pytest.mark.parametrize(
    'cfg, message',
    [
        (dict(type='SE', reduction=0), "plugin 'SE' at after_conv3, 32 channels: .*reduction"),
        (
            dict(type='CAT', arrangement='diagonal'),
            "plugin 'CAT' at after_conv3.*'channel-spatial'",
        ),
        (dict(type='ContextBlock'), "plugin 'ContextBlock' at after_conv3.*'ratio'"),
        (
            dict(type='ContextBlock', ratio=0.25, pooling_type='min'),
            "plugin 'ContextBlock' at after_conv3, 32 channels: refused by a bare AssertionError",
        ),
        (dict(type='NonLocal2d', modus='dot'), "plugin 'NonLocal2d' at after_conv3.*'modus'"),
    ],
)
def test_what_the_plugin_itself_refuses_names_the_plugin(cfg, message):
    with pytest.raises(ValueError, match=message) as info:
        R50.build([dict(cfg=cfg, position='after_conv3')])
    assert '\n' not in str(info.value)


@pytest.mark.parametrize(
    'case, plugin',
    [
        (R50, entry('SE', 'after_conv3', (False,) * 4)),
        (R50, entry('SE', 'after_stage', (False,) * 4)),
        # MobileNetV2's first stage does not expand.
        (MOBILE, entry('SE', 'after_expand', (True, *(False,) * 6))),
    ],
)
def test_a_plugin_without_a_place_is_refused(case, plugin):
    with pytest.raises(ValueError, match="plugin 'SE' at .*: no block of stages .* allowed"):
        case.build([entry('ECA', 'after_stage'), plugin])


def test_the_config_is_not_modified():
    plugins = [ConfigDict(entry('CAT', 'after_conv3', [True, False, True, True], postfix='_a'))]
    before = [p.to_dict() for p in plugins]
    model = R50.build(plugins)
    assert [p.to_dict() for p in plugins] == before
    assert 'layer1.0.cat_a' in gates(model) and not any('layer2' in name for name in gates(model))


def test_a_class_instead_of_its_name():
    built, named = R50.build([entry(CAT, 'after_conv3')]), R50.build([entry('CAT', 'after_conv3')])
    assert built.state_dict().keys() == named.state_dict().keys()
    with pytest.raises(ValueError, match="plugin 'SE': unknown argument 'ratio'"):
        slots([entry(SE, 'after_conv3', ratio=2)])


def test_default_scope_finds_types_of_that_codebase():
    pytest.importorskip('mmdet')
    with pytest.raises(ValueError, match="plugin 'DropBlock': no such type"):
        slots([entry('DropBlock', 'after_conv3', drop_prob=0.1, block_size=3)])
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert slots([entry('DropBlock', 'after_conv3', drop_prob=0.1, block_size=3)]).plugins
    assert slots([entry('mmdet.DropBlock', 'after_conv3', drop_prob=0.1, block_size=3)]).plugins


def test_a_gate_that_another_hides():
    """A user's class of that name in a codebase's registry, which is asked first."""
    pytest.importorskip('mmdet')
    from mmdet.registry import MODELS as registry

    theirs = type('SE', (nn.Module,), {'__init__': lambda self, in_channels: None})
    registry.import_from_location()
    registry.register_module(name='SE', module=theirs)
    try:
        with DefaultScope.overwrite_default_scope('mmdet'):
            with pytest.raises(ValueError) as error:
                slots([entry('SE', 'after_conv3')])
            assert str(error.value) == (
                "plugin 'SE': mmattn's class and test_slots.SE "
                f'({__file__}) have that name; allowed: mmengine.SE for the first, mmdet.SE for '
                'the second'
            )
            ours, other = slots(
                [entry(f'{s}.SE', 'after_conv3') for s in ('mmengine', 'mmdet')]
            ).plugins
        assert (ours.cls, other.cls) == (SE, theirs)
        assert slots([entry('SE', 'after_conv3')]).plugins[0].cls is SE
    finally:
        del registry.module_dict['SE']


def test_names():
    """Abbreviation and postfix, as mmcv has it; numbered where that name is taken."""

    def add(*plugins):
        module = nn.Module()
        module.bn1 = nn.BatchNorm2d(8)
        return [Plugin(p, 'Host', BASIC, 4).add_to(module, 8) for p in plugins]

    se, other = entry('SE', 'after_conv1'), entry('SE', 'after_conv2')
    assert add(se) == [build_plugin_layer(dict(type='SE'), in_channels=8)[0]] == ['se']
    assert add(se, se, other, entry('ECA', 'after_conv1')) == ['se', 'se2', 'se3', 'eca']
    assert add(entry('SE', 'after_conv1', postfix=2), se, se) == ['se2', 'se', 'se3']
    assert add(entry('SE', 'after_conv1', postfix='_x')) == ['se_x']
    with pytest.raises(ValueError, match="the name 'se1' is taken; allowed: any postfix but 1"):
        add(*[entry('SE', 'after_conv1', postfix=1)] * 2)


def test_a_plugin_may_not_shadow_the_block():
    class Norm(nn.Identity):
        _abbr_ = 'bn'

        def __init__(self, in_channels):
            super().__init__()

    with pytest.raises(ValueError, match="the name 'bn1' is taken"):
        R50.build([entry(Norm, 'after_conv1', postfix=1)])
    model = R50.build([entry(Norm, 'after_conv1')])
    assert isinstance(model.layer1[0].bn1, nn.BatchNorm2d) and isinstance(model.layer1[0].bn, Norm)


def test_known_types_are_built_by_their_hosts():
    """What the messages list as allowed does work, each with as few arguments as it takes."""
    model = R50.build(
        [
            entry(name, 'after_conv3', **(dict(ratio=0.25) if name == 'ContextBlock' else {}))
            for name in TYPES.split(', ')
        ]
    )
    with torch.no_grad():
        assert all(out.isfinite().all() for out in model(torch.randn(1, 3, 64, 64)))
    assert all(name in MODELS for name in TYPES.split(', '))
