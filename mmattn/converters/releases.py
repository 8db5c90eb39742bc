"""The papers' own releases that people have on disk: CBAM's and ECA-Net's ResNets, and Coordinate
Attention's MobileNetV2.

- CBAM: https://github.com/Jongchan/attention-module (`MODELS/model_resnet.py`)
- ECA: https://github.com/BangguWu/ECANet (`models/eca_resnet.py`)
- CA: https://github.com/houqb/CoordAttention (`mbv2_ca.py`, `coordatt.py`)
"""

import re

from torch import Tensor

from .resnet import Converted, GateNames, check, convert_resnet, plain, plugins_of

CBAM = GateNames(
    'cbam',
    'CBAM',
    {
        'ChannelGate.mlp.1': 'mlp.0',
        'ChannelGate.mlp.3': 'mlp.2',
        'SpatialGate.spatial.conv': 'conv',
        'SpatialGate.spatial.bn': 'norm',
    },
    lambda gate: dict(
        reduction=gate['mlp.0.weight'].shape[1] // gate['mlp.0.weight'].shape[0],
        kernel_size=gate['conv.weight'].shape[2],
    ),
)
ECA = GateNames(
    'eca', 'ECA', {'conv': 'conv'}, lambda gate: dict(kernel_size=gate['conv.weight'].shape[2])
)
CA = GateNames(
    '6',  # the seventh of a block's layers
    'CoordAttention',
    {
        'conv1': 'conv',
        'bn1': 'norm',
        # As mbv2_ca.py and as coordatt.py call them.
        'conv2': 'height_conv',
        'conv3': 'width_conv',
        'conv_h': 'height_conv',
        'conv_w': 'width_conv',
    },
    lambda gate: dict(reduction=32),
)
RELEASES = ('cbam', 'eca', 'ca')

# MobileNetV2's blocks in each of the host's seven stages, and where a block's layers are in our
# ConvModules: with an expanding convolution, and in the first block, which has none.
BLOCKS = (1, 2, 3, 4, 3, 3, 1)
LAYERS = {'0': '0.conv', '1': '0.bn', '3': '1.conv', '4': '1.bn', '7': '2.conv', '8': '2.bn'}
FIRST_LAYERS = {'0': '0.conv', '1': '0.bn', '3': '1.conv', '4': '1.bn'}
ENDS = {
    'features.0.0': 'backbone.conv1.conv',
    'features.0.1': 'backbone.conv1.bn',
    'conv.0': 'backbone.conv2.conv',
    'conv.1': 'backbone.conv2.bn',
    'classifier.1': 'head.fc',
}
INSIDE = re.compile(r'features\.(?P<block>\d+)\.conv\.(?P<layer>\d+)\.(?P<rest>.+)')


def from_release(name: str, weights: dict[str, Tensor], codebase: str = 'mmpretrain') -> Converted:
    """A release's weights under the names of our hosts.

    Args:
        name (str): 'cbam', 'eca' (ResNets of depth 18 to 152, for `PluginResNet`) or 'ca'
            (MobileNetV2 of width 1, for mmpretrain's `PluginMobileNetV2`).
        weights (dict[str, Tensor]): With or without the prefix of DataParallel.
        codebase (str): 'mmpretrain', 'mmdet' or 'mmseg'.

    Raises:
        ValueError: in one line, for another name, or weights of another network.
    """
    if name == 'ca':
        if codebase != 'mmpretrain':
            raise ValueError(f'MobileNetV2 has a host in mmpretrain alone, got {codebase!r}')
        return _mobilenet(plain(weights))
    if name not in RELEASES:
        raise ValueError(f'the release must be one of {", ".join(RELEASES)}, got {name!r}')
    return convert_resnet(weights, CBAM if name == 'cbam' else ECA, codebase)


def _mobilenet(weights: dict[str, Tensor]) -> Converted:
    places = [(stage + 1, block) for stage, count in enumerate(BLOCKS) for block in range(count)]
    state, gates = {}, {}
    for name, value in weights.items():
        layer, _, tensor = name.rpartition('.')
        found = INSIDE.fullmatch(name)
        if layer in ENDS:
            state[f'{ENDS[layer]}.{tensor}'] = value
            continue
        number = int(found['block']) if found else 0
        layers = FIRST_LAYERS if number == 1 else {**LAYERS, CA.child: 'coord'}
        if found is None or not 1 <= number <= len(places) or found['layer'] not in layers:
            raise ValueError(f"{name} is none of MobileNetV2's with coordinate attention")
        stage, block = places[number - 1]
        prefix = f'backbone.layer{stage}.{block}.conv.{layers[found["layer"]]}'
        if found['layer'] != CA.child or number == 1:
            state[f'{prefix}.{found["rest"]}'] = value
            continue
        theirs, _, tensor = found['rest'].partition('.')
        if theirs not in CA.names:
            raise ValueError(f'{name}: coordinate attention has no such layer')
        ours = f'{CA.names[theirs]}.{tensor}'
        # Convolutions of a row or a column, which are one-dimensional here.
        value = value.squeeze(3) if value.dim() == 4 else value
        gates.setdefault((stage, block), {})[ours] = value
        state[f'{prefix}.{ours}'] = value
    plugins = plugins_of(CA, gates, 'after_depthwise', len(BLOCKS))
    converted = Converted(state, dict(type='PluginMobileNetV2', plugins=plugins))
    check(converted, 'mmpretrain')
    return converted
