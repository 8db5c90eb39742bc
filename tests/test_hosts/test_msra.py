"""MSRA's ResNets: a small file of that form, made here, read into a host; hostile ones refused."""

import os
import pickle
import struct

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip('mmdet')

from mmdet.registry import MODELS  # noqa: E402
from mmengine.runner.checkpoint import CheckpointLoader  # noqa: E402

import mmattn  # noqa: E402, F401  (registers the hosts)
from mmattn.hosts import msra  # noqa: E402

THIN = dict(depth=50, base_channels=8, stem_channels=8, out_indices=(0, 1, 2, 3))


def host(**kwargs):
    cfg = dict(type='PluginResNet', style='caffe', norm_eval=True, **THIN, **kwargs)
    with torch.random.fork_rng():
        return MODELS.build(cfg)


def blobs_of_a_thin_resnet50():
    """What a file of MSRA's holds, for 8 channels in the place of 64."""
    random = np.random.default_rng(0)

    def conv(name, out, into, size):
        blobs[f'{name}_w'] = random.normal(0, 0.1, (out, into, size, size)).astype(np.float32)

    def norm(name, channels):
        blobs[f'{name}_bn_s'] = random.uniform(0.5, 1.5, channels).astype(np.float32)
        blobs[f'{name}_bn_b'] = random.normal(0, 0.1, channels).astype(np.float32)

    blobs = {'fc1000_w': np.ones((10, 256), np.float32), 'fc1000_b': np.ones(10, np.float32)}
    conv('conv1', 8, 3, 7)
    blobs['conv1_b'] = np.zeros(8, np.float32)
    norm('res_conv1', 8)
    into = 8
    for stage, count in enumerate((3, 4, 6, 3), start=2):
        width = 8 * 2 ** (stage - 2)
        for block in range(count):
            shapes = {'2a': (width, into, 1), '2b': (width, width, 3), '2c': (4 * width, width, 1)}
            if block == 0:
                shapes['1'] = (4 * width, into, 1)
            for branch, shape in shapes.items():
                conv(f'res{stage}_{block}_branch{branch}', *shape)
                norm(f'res{stage}_{block}_branch{branch}', shape[0])
            into = 4 * width
    return blobs


BLOBS = blobs_of_a_thin_resnet50()


def write(path, content):
    path.write_bytes(pickle.dumps(content))
    return f'msra://{path}'


def test_every_tensor_of_a_host_is_there(tmp_path):
    state = msra.load_from_msra(write(tmp_path / 'R-50.pkl', BLOBS))
    wanted = host().state_dict()
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in wanted.items() if not k.endswith('num_batches_tracked')
    }


def test_the_host_computes_what_the_file_says(tmp_path):
    """Loaded by its config, against the network written down from the blobs themselves."""
    init_cfg = dict(type='Pretrained', checkpoint=write(tmp_path / 'R-50.pkl', BLOBS))
    model = host(init_cfg=init_cfg)
    model.init_weights()
    model.eval()

    def conv(x, name, norm=None, **kwargs):
        x = F.conv2d(x, torch.from_numpy(BLOBS[f'{name}_w']), **kwargs)
        scale, shift = (torch.from_numpy(BLOBS[f'{norm or name}_bn_{kind}']) for kind in 'sb')
        return x * scale[:, None, None] + shift[:, None, None]

    image = torch.randn(2, 3, 64, 64)
    x = conv(image, 'conv1', 'res_conv1', stride=2, padding=3).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate((3, 4, 6, 3), start=2):
        for block in range(count):
            name = f'res{stage}_{block}_branch'
            stride = 2 if stage > 2 and block == 0 else 1
            # the stride is in the first 1x1 convolution
            y = conv(x, f'{name}2a', stride=stride).relu()
            y = conv(conv(y, f'{name}2b', padding=1).relu(), f'{name}2c')
            x = (y + (x if block else conv(x, f'{name}1', stride=stride))).relu()
        with torch.no_grad():
            found = model(image)[stage - 2]
        torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)


def test_gates_keep_their_start(tmp_path):
    plugins = [dict(cfg=dict(type='CAT', reduction=16), position='after_conv3')]
    init_cfg = dict(type='Pretrained', checkpoint=write(tmp_path / 'R-50.pkl', BLOBS))
    model = host(plugins=plugins, init_cfg=init_cfg)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.init_weights()
    gates = [key for key in before if '.cat.' in key]
    assert gates
    for key, value in model.state_dict().items():
        if key in gates:
            assert torch.equal(value, before[key]), key
        elif key.endswith(('weight', 'bias')):
            assert not torch.equal(value, before[key]), key


def python2(blobs):
    """The pickle that Python 2 and its NumPy wrote of a dict of arrays: all text is bytes."""

    def text(data):
        return b'T' + struct.pack('<i', len(data)) + data  # BINSTRING

    out = b'\x80\x02}('
    for name, array in blobs.items():
        shape = b'(' + b''.join(b'J' + struct.pack('<i', n) for n in array.shape) + b't'
        dtype = (
            b'cnumpy\ndtype\n(' + text(b'f4') + b'K\x00K\x01tR'
            b'(K\x03' + text(b'<') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb'
        )
        out += (
            text(name.encode())
            + b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t'
            + text(b'b')
            + b'tR(K\x01'
            + shape
            + dtype
            + b'I00\n'
            + text(array.tobytes())
            + b'tb'
        )
    return out + b'u.'


def test_the_pickles_of_python_2(tmp_path):
    """As the published files are."""
    path = tmp_path / 'R-50.pkl'
    path.write_bytes(python2(BLOBS))
    other = tmp_path / 'other.pkl'
    found, wanted = msra.load_from_msra(str(path)), msra.load_from_msra(write(other, BLOBS))
    assert list(found) == list(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_blobs_one_level_deeper_and_momenta(tmp_path):
    blobs = {**BLOBS, 'conv1_w_momentum': BLOBS['conv1_w']}
    state = msra.load_from_msra(write(tmp_path / 'R-50.pkl', {'cfg': 'text', 'blobs': blobs}))
    assert list(state) == list(msra.load_from_msra(write(tmp_path / 'other.pkl', BLOBS)))


class Hostile:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    'function, args, name',
    [
        (os.mkdir, ('{folder}/harm',), f'{os.mkdir.__module__}.mkdir'),
        (eval, ("__import__('os').mkdir('{folder}/harm')",), 'builtins.eval'),
        (getattr, (os, 'mkdir'), 'builtins.getattr'),
    ],
)
def test_nothing_is_run(tmp_path, function, args, name):
    args = [a.format(folder=tmp_path) if isinstance(a, str) else 'os' for a in args]
    path = write(tmp_path / 'R-50.pkl', {**BLOBS, 'conv1_w': Hostile(function, *args)})
    with pytest.raises(ValueError, match=f'no pickle of arrays: it asks for {name}; allowed: '):
        msra.load_from_msra(path)
    assert not (tmp_path / 'harm').exists()


@pytest.mark.parametrize(
    'content, words',
    [
        ({'conv2_w': BLOBS['conv1_w']}, 'no dict with a conv1_w'),
        ([BLOBS], 'no dict with a conv1_w'),
        ({**BLOBS, 'res6_0_branch1_w': BLOBS['conv1_w']}, "it has a 'res6_0_branch1_w'"),
        ({**BLOBS, 7: BLOBS['conv1_w']}, 'it has a 7'),
        ({**BLOBS, 'conv1_w': 'text'}, 'conv1_w is no array of floats'),
        ({**BLOBS, 'conv1_w': np.array([None])}, 'no pickle of arrays: an array of other than'),
        ({**BLOBS, 'conv1_w': np.ones(3, int)}, 'conv1_w is no array of floats'),
    ],
)
def test_other_contents(tmp_path, content, words):
    with pytest.raises(ValueError, match=words):
        msra.load_from_msra(write(tmp_path / 'R-50.pkl', content))


def test_no_array_of_pointers(tmp_path):
    """A dtype whose flags say that there are bytes where an object lies: NumPy reads the file's
    bytes as addresses, and the process is gone, or the file's."""

    class Dtype:
        def __reduce__(self):
            fields = {'a': (np.dtype('O'), 0)}
            return np.dtype, ('V8', False, True), (3, '|', None, ('a',), fields, 8, 1, 0)

    class Array:
        def __reduce__(self):
            make, args, _ = np.zeros(1).__reduce__()
            return make, args, (1, (1,), Dtype(), False, b'A' * 8)

    path = write(tmp_path / 'R-50.pkl', {**BLOBS, 'conv1_w': Array()})
    with pytest.raises(ValueError, match='no pickle of arrays: an array of other than numbers'):
        msra.load_from_msra(path)


def test_no_pickle_and_no_file(tmp_path):
    path = tmp_path / 'R-50.pkl'
    with pytest.raises(FileNotFoundError, match='no file .*R-50.pkl; the published ones are https'):
        CheckpointLoader.load_checkpoint(f'msra://{path}')
    for content in (b'', b'no pickle', pickle.dumps(BLOBS)[:1000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match='is no pickle of arrays'):
            CheckpointLoader.load_checkpoint(f'msra://{path}')
