"""SimAM, triplet attention and EMA in float64: their equations in NumPy, and their public code.

The modules below have the names of layers that the releases have, written anew from reading them:
github.com/ZjjConan/SimAM, github.com/landskape-ai/triplet-attention and
github.com/YOLOonMe/EMA-attention-module.
"""

import numpy as np
import pytest
import torch
from test_channel_gates import arrays, compare, features, normalise, randomise, sigmoid
from torch import nn

from mmattn.attention import EMA, SimAM, TripletAttention


def test_simam():
    """Eq. 5: the energy 4 (s2 + l) / ((t - m)^2 + 2 s2 + 2 l), s2 as the release computes it."""
    z, x = features()
    mean, variance = z.mean((2, 3), keepdims=True), z.var((2, 3), ddof=1, keepdims=True)
    for e_lambda in (1e-4, 0.1):
        energy = 4 * (variance + e_lambda) / ((z - mean) ** 2 + 2 * variance + 2 * e_lambda)
        gate = SimAM(12, e_lambda)
        compare(gate, x, z * sigmoid(1 / energy))
        assert not gate.state_dict()


def test_simam_of_a_single_value():
    x = torch.randn(2, 4, 1, 1)
    torch.testing.assert_close(SimAM(4)(x), x * torch.tensor(0.5).sigmoid())


def correlate(planes, kernel):
    """(N, 2, A, B) by (1, 2, k, k) -> (N, A, B), zero-padded."""
    reach = kernel.shape[-1] // 2
    padded = np.pad(planes, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2:], (2, 3))
    return np.einsum('ncabij,cij->nab', windows, kernel[0])


@pytest.mark.parametrize('train', (True, False))
@pytest.mark.parametrize('spatial', (True, False))
def test_triplet_attention(spatial, train):
    gate = randomise(TripletAttention(12, kernel_size=3, spatial=spatial)).train(train)
    p = arrays(gate)
    z, x = features()

    def factors(name, axis):
        pooled = np.stack((z.max(axis), z.mean(axis)), 1)
        if name == 'height_channel':  # heights are the rows
            pooled = pooled.swapaxes(2, 3)
        s = correlate(pooled, p[f'{name}.conv.weight'])[:, None]
        s = sigmoid(normalise(p, f'{name}.norm', s, train))[:, 0]
        return np.expand_dims(s.swapaxes(1, 2) if name == 'height_channel' else s, axis)

    found = [factors('channel_width', 2), factors('height_channel', 3)]
    if spatial:
        found.append(factors('height_width', 1))
    compare(gate, x, z * sum(found) / len(found))


def test_ema():
    gate = randomise(EMA(12, factor=4))
    p = arrays(gate)
    z, x = features(h=5, w=4)
    g = z.reshape(8, 3, 5, 4)
    strips = np.concatenate((g.mean(3), g.mean(2)), 2)
    strips = np.einsum('oc,ncl->nol', p['point_conv.weight'][:, :, 0, 0], strips)
    strips = sigmoid(strips + p['point_conv.bias'][:, None])
    one = g * strips[:, :, :5, None] * strips[:, :, None, 5:]
    one = one - one.mean((2, 3), keepdims=True)
    one = one / np.sqrt((one**2).mean((2, 3), keepdims=True) + 1e-5)
    one = one * p['norm.weight'][:, None, None] + p['norm.bias'][:, None, None]
    other = np.empty_like(g)
    for channel in range(3):
        padded = np.pad(g, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
        kernel = p['conv.weight'][channel]
        other[:, channel] = np.einsum('ncabij,cij->nab', windows, kernel) + p['conv.bias'][channel]

    def softmax(v):
        e = np.exp(v - v.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    total = sum(
        np.einsum('nc,nchw->nhw', softmax(by.mean((2, 3))), maps)
        for by, maps in ((one, other), (other, one))
    )
    compare(gate, x, (g * sigmoid(total)[:, None]).reshape(z.shape))


def test_groups_of_ema():
    """As many as are asked for, or as divide the channels, too."""
    assert [EMA(c).groups for c in (64, 2048, 144, 24, 23)] == [32, 32, 16, 8, 1]
    assert EMA(64, factor=8).conv.weight.shape == (8, 8, 3, 3)


def test_ema_of_a_single_value():
    gate = randomise(EMA(3))
    x = torch.randn(1, 3, 1, 1, dtype=torch.float64)
    one, other = gate.norm.bias, gate.conv(x).flatten()
    total = one.softmax(0) @ other + other.softmax(0) @ one
    torch.testing.assert_close(gate(x), x * total.sigmoid())


# ---------------------------------------------------------------------------------- public code


class ZPool(nn.Module):
    def forward(self, x):
        return torch.cat((x.max(1)[0].unsqueeze(1), x.mean(1).unsqueeze(1)), 1)


class PublicConv(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01)

    def forward(self, x):
        return self.bn(self.conv(x))


class PublicBranch(nn.Module):
    def __init__(self):
        super().__init__()
        self.compress, self.conv = ZPool(), PublicConv(7)

    def forward(self, x):
        return x * self.conv(self.compress(x)).sigmoid()


class PublicTriplet(nn.Module):
    def __init__(self):
        super().__init__()
        self.cw, self.hc, self.hw = PublicBranch(), PublicBranch(), PublicBranch()

    def forward(self, x):
        cw = self.cw(x.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)
        hc = self.hc(x.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)
        return (self.hw(x) + cw + hc) / 3


class PublicEMA(nn.Module):
    def __init__(self, channels, factor=32):
        super().__init__()
        self.groups = factor
        width = channels // factor
        self.gn = nn.GroupNorm(width, width)
        self.conv1x1 = nn.Conv2d(width, width, 1)
        self.conv3x3 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        n, c, h, w = x.shape
        group = x.reshape(n * self.groups, -1, h, w)
        rows = nn.functional.adaptive_avg_pool2d(group, (None, 1))
        columns = nn.functional.adaptive_avg_pool2d(group, (1, None)).permute(0, 1, 3, 2)
        rows, columns = self.conv1x1(torch.cat((rows, columns), 2)).split((h, w), 2)
        x1 = self.gn(group * rows.sigmoid() * columns.permute(0, 1, 3, 2).sigmoid())
        x2 = self.conv3x3(group)
        by_1 = x1.mean((2, 3)).softmax(-1).unsqueeze(1)
        by_2 = x2.mean((2, 3)).softmax(-1).unsqueeze(1)
        weights = by_1 @ x2.flatten(2) + by_2 @ x1.flatten(2)
        return (group * weights.reshape(-1, 1, h, w).sigmoid()).reshape(n, c, h, w)


NAMES = {
    'cw.conv.': 'channel_width.',
    'hc.conv.': 'height_channel.',
    'hw.conv.': 'height_width.',
    'bn.': 'norm.',
    'gn.': 'norm.',
    'conv1x1.': 'point_conv.',
    'conv3x3.': 'conv.',
}


@pytest.mark.parametrize(
    'gate, public', ((TripletAttention(64), PublicTriplet()), (EMA(64), PublicEMA(64)))
)
@pytest.mark.parametrize('train', (True, False))
def test_public_code(gate, public, train):
    """The same numbers from the same weights, and the same running statistics after them."""
    randomise(public).train(train)
    state = {}
    for name, value in public.state_dict().items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        state[name] = value.clone()
    gate.double().train(train).load_state_dict(state)
    x = torch.randn(2, 64, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(gate(x), public(x))
    for ours, theirs in zip(gate.buffers(), public.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
