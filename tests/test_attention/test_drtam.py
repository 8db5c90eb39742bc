"""DRTAM in float64 against eq. 1-14 in plain numpy, one sample and one position at a time."""

import numpy as np
import pytest
import torch

from mmattn.attention import DRTAM
from mmattn.ops.reference.pooling import chunk_pool

# Length and chunks -> the pieces, written out by hand.
CUTS = {
    (6, 3): [(0, 2), (2, 4), (4, 6)],
    (7, 3): [(0, 3), (3, 6), (6, 7)],
    (10, 4): [(0, 3), (3, 6), (6, 9), (9, 10)],
    (56, 3): [(0, 19), (19, 38), (38, 56)],
    # torch.chunk makes too few of these: as even as possible.
    (4, 3): [(0, 2), (2, 3), (3, 4)],
    (5, 4): [(0, 2), (2, 3), (3, 4), (4, 5)],
    (6, 4): [(0, 2), (2, 4), (4, 5), (5, 6)],
    (9, 4): [(0, 3), (3, 5), (5, 7), (7, 9)],
    # Shorter than the number of chunks: overlapping.
    (2, 3): [(0, 1), (0, 2), (1, 2)],
    (1, 3): [(0, 1)] * 3,
    (3, 4): [(0, 1), (0, 2), (1, 3), (2, 3)],
    # No cut.
    (6, 1): [(0, 6)],
    (5, 1): [(0, 5)],
    (1, 1): [(0, 1)],
}


@pytest.mark.parametrize('length, chunks', CUTS)
def test_chunks(length, chunks):
    x = torch.randn(2, 3, length, dtype=torch.float64)
    windows = CUTS[length, chunks]
    avg = torch.stack([x[..., a:b].sum(-1) / (b - a) for a, b in windows], -1)
    peak = torch.stack([x[..., a:b].max(-1).values for a, b in windows], -1)
    for mode, expected in (('avg', avg), ('max', peak)):
        torch.testing.assert_close(chunk_pool(x, chunks, mode), expected)
        turned = chunk_pool(x.transpose(1, 2), chunks, mode, dim=1)
        torch.testing.assert_close(turned, expected.transpose(1, 2))


@pytest.mark.parametrize('chunks', (1, 2, 3, 4, 7))
def test_chunks_are_those_of_torch_where_it_makes_enough(chunks):
    for length in range(1, 70):
        x = torch.randn(1, 1, length, dtype=torch.float64)
        pooled = chunk_pool(x, chunks, 'avg')
        assert pooled.shape == (1, 1, chunks)
        pieces = x.chunk(chunks, -1)
        if len(pieces) == chunks:
            torch.testing.assert_close(pooled, torch.stack([p.mean(-1) for p in pieces], -1))


MAXIMA = (dict(plane_max=True), dict(chunk_max=True), dict(plane_max=True, chunk_max=True))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def pool(v, chunks, how):
    """A vector's chunks, each averaged or maximised."""
    return [how(v[a:b]) for a, b in CUTS[len(v), chunks]]


def rtam(p, name, ch, cw, hw, s, n, train, plane_max=False, chunk_max=False):
    """Planes (C, H), (C, W), (H, W) of each sample -> vectors c, h, w of each sample."""
    channels, height, width = ch.shape[1], *hw.shape[1:]
    raw = dict(channel=[], height=[], width=[])
    for x_ch, x_cw, x_hw in zip(ch, cw, hw, strict=True):
        row = p[f'{name}.channel_conv.weight'].ravel()
        raw['channel'].append([])
        for c in range(channels):
            values = []
            for chunk in zip(
                pool(x_cw[c], s, np.mean),
                pool(x_cw[c], s, np.max),
                pool(x_ch[c], s, np.mean),
                pool(x_ch[c], s, np.max),
                strict=True,
            ):
                values += chunk
            raw['channel'][-1].append(np.dot(row, values))
        for axis, length, plane, side in (
            ('height', height, x_hw, x_ch),
            ('width', width, x_hw.T, x_cw),
        ):
            strips = np.array(
                [
                    [
                        *pool(plane[i], s, np.mean),
                        *(pool(plane[i], s, np.max) if plane_max else ()),
                        *pool(side[:, i], n, np.mean),
                        *(pool(side[:, i], n, np.max) if chunk_max else [side[:, i].max()]),
                    ]
                    for i in range(length)
                ]
            )
            kernel = p[f'{name}.{axis}_conv.weight'][0]
            raw[axis].append(
                [
                    sum(
                        np.dot(kernel[:, k + 1], strips[i + k])
                        for k in (-1, 0, 1)
                        if 0 <= i + k < length
                    )
                    for i in range(length)
                ]
            )
    normed = {}
    for axis, values in raw.items():
        values, norm = np.array(values), f'{name}.{axis}_norm'
        mean, var = (
            (values.mean(), values.var())
            if train
            else (p[f'{norm}.running_mean'], p[f'{norm}.running_var'])
        )
        normed[axis] = (values - mean) / np.sqrt(var + 1e-5) * p[f'{norm}.weight'] + p[
            f'{norm}.bias'
        ]
    hidden = np.maximum(normed['channel'] @ p['mlp.0.weight'].T + p['mlp.0.bias'], 0)
    c = sigmoid(hidden @ p['mlp.2.weight'].T + p['mlp.2.bias'])
    return c, sigmoid(normed['height']), sigmoid(normed['width'])


@pytest.mark.parametrize('train', (True, False))
@pytest.mark.parametrize('dual', (True, False))
@pytest.mark.parametrize('maxima', ({}, *MAXIMA))
@pytest.mark.parametrize(
    's, n, size', ((3, 1, (6, 7)), (3, 4, (4, 2)), (4, 1, (10, 3)), (3, 1, (1, 7)), (1, 1, (1, 5)))
)
def test_equations(s, n, size, dual, train, maxima):
    torch.manual_seed(0)
    gate = DRTAM(6, num_chunks=s, num_channel_chunks=n, dual=dual, **maxima).double().train(train)
    for name, tensor in gate.state_dict().items():
        if name.endswith('running_var'):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            tensor.normal_()
    p = {name: tensor.numpy().copy() for name, tensor in gate.state_dict().items()}

    z = np.random.default_rng(0).normal(size=(2, 6, *size))
    ch, cw, hw = z.mean(3), z.mean(2), z.mean(1)
    c, h, w = rtam(p, 'initial', ch, cw, hw, s, n, train, **maxima)
    attention = np.einsum('nc,nh,nw->nchw', c, h, w)
    if dual:
        ch = ch * (1 - np.einsum('nc,nh->nch', c, h))
        cw = cw * (1 - np.einsum('nc,nw->ncw', c, w))
        hw = hw * (1 - np.einsum('nh,nw->nhw', h, w))
        factors = rtam(p, 'complement', ch, cw, hw, s, n, train, **maxima)
        second = np.einsum('nc,nh,nw->nchw', *factors)
        attention = attention + (1 - attention) * second
    y = gate(torch.from_numpy(z)).detach().numpy()
    np.testing.assert_allclose(y, z * attention, rtol=1e-9, atol=1e-12)


def test_what_is_shared():
    """Two fully connected layers with biases for both; the second module doubles the rest."""
    dual, single = DRTAM(256, 16), DRTAM(256, 16, dual=False)
    shared = 2 * 256 * 16 + 16 + 256
    own = 4 * 3 + 2 + 2 * (3 * (3 + 1 + 1) + 2)
    assert sum(p.numel() for p in single.parameters()) == shared + own
    assert sum(p.numel() for p in dual.parameters()) == shared + 2 * own


def test_hidden_width():
    assert DRTAM(2048).mlp[0].out_features == 64
    assert DRTAM(24).mlp[0].out_features == 8
    assert DRTAM(1).mlp[0].out_features == 8
    assert DRTAM(24, min_hidden=1, reduction=4).mlp[0].out_features == 6
    assert DRTAM(24, min_hidden=1).mlp[0].out_features == 1  # the release's C // r would be none


@pytest.mark.parametrize('maxima', MAXIMA)
def test_maxima_run_as_equations_between_the_fast_passes(maxima, monkeypatch):
    """No kernel of the planes runs, those of the feature map do, and the numbers are the same."""
    native = pytest.importorskip('mmattn.ops.native')
    ran = []
    for name in ('strip_pool', 'rank1_pool', 'rank1_attention', 'rank1_scale'):
        run = getattr(native, name)
        monkeypatch.setattr(
            native, name, lambda *a, name=name, run=run, **k: ran.append(name) or run(*a, **k)
        )
    x = torch.randn(2, 24, 9, 7)
    has_kernels = native.works(x.device)
    results = []
    for impl in ('fast', 'reference'):
        torch.manual_seed(0)
        gate = DRTAM(24, num_channel_chunks=4, impl=impl, **maxima)
        y = x.clone().requires_grad_()
        out = gate(y)
        out.square().sum().backward()
        results.append([out, y.grad, *(p.grad for p in gate.parameters()), *gate.buffers()])
    assert ran == (['strip_pool', 'rank1_scale'] if has_kernels else [])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_a_single_chunk_of_channels_has_one_maximum_anyway(monkeypatch):
    """So that the kernels may run."""
    gate = DRTAM(12, chunk_max=True)
    plain = DRTAM(12)
    plain.load_state_dict(gate.state_dict())
    monkeypatch.setattr('mmattn.ops.reference.rank1_pool', None)
    x = torch.randn(2, 12, 5, 6)
    native = pytest.importorskip('mmattn.ops.native')
    if native.works(x.device):
        torch.testing.assert_close(gate(x), plain(x), rtol=0, atol=0)


def test_parameters_of_the_release():
    """Three more weights of kernel 3 a chunk for each of height and width, in each module."""
    shared = 2 * 256 * 16 + 16 + 256
    own = 4 * 3 + 2 + 2 * (3 * (3 + 3 + 1 + 1) + 2)
    gate = DRTAM(256, 16, min_hidden=1, plane_max=True, chunk_max=True)
    assert sum(p.numel() for p in gate.parameters()) == shared + 2 * own
    four = DRTAM(256, 16, num_channel_chunks=4, plane_max=True, chunk_max=True)
    assert four.initial.height_conv.weight.shape == (1, 2 * 3 + 2 * 4, 3)
