"""The ResNets of MSRA from which Detectron2 starts, as checkpoints named `msra://<file>`.

`R-50.pkl` and `R-101.pkl` are pickles of Caffe2's blobs: a dict of names and NumPy arrays. Images
go in as BGR with a standard deviation of 1, a stage's stride lies in its first 1x1 convolution
(`style='caffe'`), and batch norms are merged into a scale and a shift.
"""

import os
import re
from typing import Any

import numpy as np
import torch
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from mmattn import pickles

PREFIX = 'msra://'
URL = 'https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/'

NAME = re.compile(
    r'(?:(?:res_)?conv1|res(?P<stage>[2-5])_(?P<block>\d+)_branch(?P<branch>1|2[abc]))'
    r'(?P<blob>_w|_bn_s|_bn_b)'
)
# What a branch is called in torchvision: its convolution and its norm.
BRANCHES = {
    '1': ('downsample.0', 'downsample.1'),
    '2a': ('conv1', 'bn1'),
    '2b': ('conv2', 'bn2'),
    '2c': ('conv3', 'bn3'),
}
BLOBS = {'_w': (0, 'weight'), '_bn_s': (1, 'weight'), '_bn_b': (1, 'bias')}
# The classifier, momenta of the optimiser, and a bias of the first convolution, which is merged
# into its norm: Detectron2 leaves these, too.
UNUSED = re.compile(r'(fc1000|pred)_[wb]|conv1_b|.*_momentum')


def load_from_msra(filename: str, map_location: Any = None) -> dict[str, Tensor]:
    """Read one of MSRA's ResNets under the names that torchvision and MMDetection have.

    Args:
        filename (str): Path of the pickle, with or without `msra://` before it.
        map_location: A device for the tensors, as `torch.load` takes it; None is the CPU.

    Returns:
        dict[str, Tensor]: the state dict of a ResNet without its classifier. What the file has
            merged into scale and shift is there as a running mean of 0 and a running variance of 1.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no pickle of arrays, asks for anything else, or has other names.
    """
    path = os.path.expanduser(filename.removeprefix(PREFIX))
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f'no file {path}; the published ones are {URL}R-50.pkl and R-101.pkl'
        )
    try:
        blobs = pickles.load_file(path)
    except pickles.UnknownNames as error:
        raise ValueError(
            f'{path} is no pickle of arrays: it asks for {error}; allowed: NumPy arrays in dicts, '
            'lists and tuples'
        ) from error
    except pickles.PickleError as error:
        raise ValueError(f'{path} is no pickle of arrays: {error}') from error
    if isinstance(blobs, dict) and isinstance(blobs.get('blobs'), dict):
        blobs = blobs['blobs']  # Detectron's detectors have them one level deeper
    if not isinstance(blobs, dict) or 'conv1_w' not in blobs:
        raise ValueError(f"{path} is none of MSRA's ResNets: it is no dict with a conv1_w")
    state: dict[str, Tensor] = {}
    for name, blob in blobs.items():
        if not UNUSED.fullmatch(str(name)):
            _add(state, path, name, blob)
    return {key: value.to(map_location or 'cpu') for key, value in state.items()}


def _add(state: dict[str, Tensor], path: str, name: Any, blob: Any) -> None:
    """Put a blob into the state dict: 'res2_0_branch2a_bn_s' is 'layer1.0.bn1.weight'."""
    found = NAME.fullmatch(str(name))
    if found is None:
        raise ValueError(f"{path} is none of MSRA's ResNets: it has a {name!r}")
    if not isinstance(blob, np.ndarray) or blob.dtype.kind != 'f':
        raise ValueError(f'{path}: {name} is no array of floats')
    which, tensor = BLOBS[found['blob']]
    layer = BRANCHES[found['branch'] or '2a'][which]  # the stem is conv1 and bn1, too
    if found['stage']:
        layer = f'layer{int(found["stage"]) - 1}.{found["block"]}.{layer}'
    state[f'{layer}.{tensor}'] = torch.from_numpy(blob.astype(np.float32))
    if tensor == 'bias':
        state[f'{layer}.running_mean'] = torch.zeros(blob.shape)
        state[f'{layer}.running_var'] = torch.ones(blob.shape)


CheckpointLoader.register_scheme(PREFIX, load_from_msra, force=True)
