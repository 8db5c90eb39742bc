"""SE, ECA, CBAM and coordinate attention in float64 against their equations in plain numpy."""

import math

import numpy as np
import pytest
import torch

from mmattn.attention import CBAM, ECA, SE, CoordAttention


def randomise(gate, seed=0):
    torch.manual_seed(seed)
    gate = gate.double()
    for name, tensor in gate.state_dict().items():
        if name.endswith('running_var'):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            tensor.normal_()
    return gate


def arrays(gate):
    return {name: tensor.numpy().copy() for name, tensor in gate.state_dict().items()}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def dense(p, v):
    hidden = np.maximum(p['mlp.0.weight'] @ v + p.get('mlp.0.bias', 0), 0)
    return p['mlp.2.weight'] @ hidden + p.get('mlp.2.bias', 0)


def normalise(p, name, z, train):
    """Batch norm over all axes but the channels, axis 1."""
    axes = tuple(a for a in range(z.ndim) if a != 1)
    shape = [-1 if a == 1 else 1 for a in range(z.ndim)]
    mean = z.mean(axes) if train else p[f'{name}.running_mean']
    var = z.var(axes) if train else p[f'{name}.running_var']
    z = (z - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + 1e-5)
    return z * p[f'{name}.weight'].reshape(shape) + p[f'{name}.bias'].reshape(shape)


def features(n=2, c=12, h=5, w=4):
    x = np.random.default_rng(0).normal(size=(n, c, h, w))
    return x, torch.from_numpy(x.copy())


def compare(gate, x, expected):
    np.testing.assert_allclose(gate(x).detach().numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('bias', (False, True))
def test_se(bias):
    gate = randomise(SE(12, reduction=4, bias=bias))
    p = arrays(gate)
    z, x = features()
    factors = np.stack([sigmoid(dense(p, sample.mean((1, 2)))) for sample in z])
    compare(gate, x, z * factors[:, :, None, None])


@pytest.mark.parametrize('kernel_size', (None, 1, 5))
def test_eca(kernel_size):
    gate = randomise(ECA(12, kernel_size))
    kernel = arrays(gate)['conv.weight'].ravel()
    assert len(kernel) == (kernel_size or 3)
    z, x = features()
    expected = np.empty_like(z)
    for n in range(2):
        for c in range(12):
            reach = len(kernel) // 2
            total = sum(
                kernel[k + reach] * z[n, c + k].mean()
                for k in range(-reach, reach + 1)
                if 0 <= c + k < 12
            )
            expected[n, c] = z[n, c] * sigmoid(total)
    compare(gate, x, expected)


@pytest.mark.parametrize(
    'channels, size',
    ((1, 1), (8, 3), (16, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)),
)
def test_eca_kernel_sizes(channels, size):
    t = int(abs(math.log2(channels) / 2 + 1 / 2))
    assert size == (t if t % 2 else t + 1)
    assert ECA(channels).conv.weight.shape == (1, 1, size)


@pytest.mark.parametrize('train', (True, False))
@pytest.mark.parametrize('bias', (True, False))
@pytest.mark.parametrize('norm', (True, False))
def test_cbam(bias, norm, train):
    gate = randomise(CBAM(12, reduction=4, kernel_size=3, bias=bias, norm=norm)).train(train)
    p = arrays(gate)
    z, x = features()
    c = np.stack([sigmoid(dense(p, s.mean((1, 2))) + dense(p, s.max((1, 2)))) for s in z])
    refined = z * c[:, :, None, None]
    planes = np.stack([refined.max(1), refined.mean(1)], 1)
    planes = np.pad(planes, ((0, 0), (0, 0), (1, 1), (1, 1)))
    s = np.zeros((2, 1, 5, 4))
    for i in range(5):
        for j in range(4):
            s[:, 0, i, j] = (planes[:, :, i : i + 3, j : j + 3] * p['conv.weight']).sum((1, 2, 3))
    if norm:
        s = normalise(p, 'norm', s, train)
    compare(gate, x, refined * sigmoid(s))


@pytest.mark.parametrize('train', (True, False))
def test_coordinate_attention(train):
    gate = randomise(CoordAttention(12)).train(train)
    p = arrays(gate)
    z, x = features()
    strips = np.concatenate([z.mean(3), z.mean(2)], 2)
    y = np.einsum('oc,ncl->nol', p['conv.weight'][:, :, 0], strips) + p['conv.bias'][:, None]
    y = normalise(p, 'norm', y, train)
    y = y * np.clip(y + 3, 0, 6) / 6
    factor = {}
    for name, part in (('height', y[..., :5]), ('width', y[..., 5:])):
        weight, bias = p[f'{name}_conv.weight'][:, :, 0], p[f'{name}_conv.bias'][:, None]
        factor[name] = sigmoid(np.einsum('oc,ncl->nol', weight, part) + bias)
    compare(gate, x, z * factor['height'][:, :, :, None] * factor['width'][:, :, None])


def test_hidden_width():
    assert SE(250).mlp[0].out_features == CBAM(250).mlp[0].out_features == 15
    assert CoordAttention(1000).conv.out_channels == 31
    # Few channels: one unit at least, and eight in coordinate attention.
    assert SE(8).mlp[0].out_features == CBAM(8).mlp[0].out_features == 1
    assert CoordAttention(8).conv.out_channels == 8


def test_cbam_whose_norm_starts_at_zero():
    """As in the authors' ImageNet networks: half of what the channels leave, at first."""
    gate = CBAM(12, norm_weight=0).train()
    assert gate.norm.weight.item() == 0 and gate.norm.weight.requires_grad
    p = arrays(gate.double())
    z, x = features()
    c = np.stack([sigmoid(dense(p, s.mean((1, 2))) + dense(p, s.max((1, 2)))) for s in z])
    compare(gate, x, z * c[:, :, None, None] / 2)
    gate(x).sum().backward()
    assert gate.norm.weight.grad.abs() > 0  # it can leave
    assert CBAM(12).norm.weight.item() == 1
