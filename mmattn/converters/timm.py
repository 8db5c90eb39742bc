"""timm's gated ResNets, whose published weights a host of ours can have."""

import os
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from .resnet import Converted, GateNames, convert_resnet

SE = GateNames(
    'se',
    'SE',
    {'fc1': 'mlp.0', 'fc2': 'mlp.2'},
    lambda gate: dict(
        reduction=gate['mlp.0.weight'].shape[1] // gate['mlp.0.weight'].shape[0], bias=True
    ),
)
ECA = GateNames(
    'se', 'ECA', {'conv': 'conv'}, lambda gate: dict(kernel_size=gate['conv.weight'].shape[2])
)
# Each with its gate, its depth, and whether it is a ResNet-D. timm 1.0 has weights for seresnet50,
# seresnet152d, ecaresnet50d and ecaresnet101d; of the others, only who has trained them.
NAMES = {
    'seresnet18': (SE, 18, False),
    'seresnet34': (SE, 34, False),
    'seresnet50': (SE, 50, False),
    'seresnet101': (SE, 101, False),
    'seresnet152': (SE, 152, False),
    'seresnet152d': (SE, 152, True),
    'ecaresnet50d': (ECA, 50, True),
    'ecaresnet101d': (ECA, 101, True),
}
WHY_NOT = (
    (r'legacy_.*', 'its max pool has no padding and its strides lie in other convolutions'),
    (r'.*_pruned', 'its blocks were pruned to widths of their own'),
    (r'.*next.*|senet.*', 'its convolutions are in groups, which no host has'),
    (r'.*aa\d+.*|.*blur.*', 'it blurs before each stride'),
    (r'resnetrs.*', 'its stem pools by a convolution'),
    (r'.*\d+ts?', 'its stem has three widths, which no host has'),
    (r'ecaresnetlight|.*(200|269)d', 'no host has its numbers of blocks'),
)


class NotSupported(ValueError):
    """A name of timm's, or of none, that has no host."""


def check_name(name: str) -> str:
    """The model's name, without a tag ('seresnet50' of 'seresnet50.a1_in1k').

    Raises:
        NotSupported: in one line, with the reason and the names that are.
    """
    model = name.partition('.')[0]
    if model not in NAMES:
        reason = next((why for form, why in WHY_NOT if re.fullmatch(form, model)), None)
        raise NotSupported(
            f'{name}: {reason or "no gated ResNet of timm that a host of ours can be"}; '
            f'supported: {", ".join(NAMES)}'
        )
    return model


def from_timm(name: str, weights: dict[str, Tensor], codebase: str = 'mmpretrain') -> Converted:
    """A timm model's weights under the names of our `PluginResNet`.

    Args:
        name (str): One of `NAMES`, with or without a tag.
        weights (dict[str, Tensor]): Of `timm.create_model(name).state_dict()`.
        codebase (str): 'mmpretrain', 'mmdet' or 'mmseg': ResNet-Ds are called otherwise in each.

    Raises:
        NotSupported, ValueError: in one line, for another name, or weights of another network.
    """
    gate, depth, deep = NAMES[check_name(name)]
    converted = convert_resnet(weights, gate, codebase, deep)
    if converted.backbone['depth'] != depth:
        raise ValueError(
            f'{name} is a ResNet-{depth}, these weights a ResNet-{converted.backbone["depth"]}'
        )
    return converted


def pretrained_cfg(name: str) -> dict[str, Any]:
    """What timm says of the weights: where they are, and the images that they are for.

    Raises:
        NotSupported: without timm, or if it has no weights of that name.
    """
    model = check_name(name)
    try:
        from timm.models import get_pretrained_cfg, list_pretrained
    except ImportError as error:
        raise NotSupported(
            'timm tells where its weights are: pip install timm, or give --file'
        ) from error
    tags = list_pretrained(f'{model}.*')
    try:
        found = get_pretrained_cfg(name) if tags else None
    except RuntimeError:  # of another tag
        found = None
    if found is None or not (found.hf_hub_id or found.url):
        have = f'it has {", ".join(tags)}' if tags else 'give yours by --file'
        raise NotSupported(f'timm has no weights of {name}; {have}')
    return found.to_dict()


def download(cfg: dict[str, Any]) -> Path:
    """The file of the weights that `pretrained_cfg` describes; whatever it holds, it is only data.

    Raises:
        OSError: if neither Hugging Face's hub nor the release has it.
    """
    if cfg.get('hf_hub_id'):
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(cfg['hf_hub_id'], 'model.safetensors'))
        except Exception as error:  # its many errors, of a missing network too
            if not cfg.get('url'):
                raise OSError(f'{cfg["hf_hub_id"]} could not be loaded: {error}') from error
    import torch

    path = Path(torch.hub.get_dir()) / 'checkpoints' / os.path.basename(cfg['url'])
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(cfg['url'], str(path))
        except Exception as error:
            raise OSError(f'{cfg["url"]} could not be loaded: {error}') from error
    return path
