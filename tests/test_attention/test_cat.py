"""CAT in float64 against eq. 1-7 and Algorithm 1 in plain numpy, sample by sample."""

import math

import numpy as np
import pytest
import torch

from mmattn.attention import CAT
from mmattn.attention.cat import gaussian
from mmattn.ops import min_max

TABLE_6 = {
    '+ spatial': dict(arrangement='spatial', interior=False),
    '+ spatial w/o GEP': dict(arrangement='spatial', interior=False, pools=('avg', 'max')),
    '+ channel': dict(arrangement='channel', interior=False),
    '+ channel w/o GEP': dict(arrangement='channel', interior=False, pools=('avg', 'max')),
    '+ channel + spatial': dict(arrangement='channel-spatial', interior=False),
    '+ channel + spatial w/o GEP': dict(
        arrangement='channel-spatial', interior=False, pools=('avg', 'max')
    ),
    '+ spatial + channel': dict(arrangement='spatial-channel', interior=False),
    '+ spatial + channel w/o GEP': dict(
        arrangement='spatial-channel', interior=False, pools=('avg', 'max')
    ),
    'CAT w/ exterior colla-factors': dict(interior=False),
    'CAT w/ exterior & interior colla-factors': dict(),
}
OPTIONS = {
    'algorithm': dict(formula='algorithm'),
    'algorithm, no factors': dict(formula='algorithm', interior=False, exterior=False),
    'equation, no exterior factors': dict(exterior=False),
    'softmax': dict(interior_softmax=True),
    'range': dict(entropy_range=(-1, 1)),
    'one pool': dict(pools=('ent',)),
    'pools in another order': dict(pools=('ent', 'avg')),
    'list of pools': dict(pools=['max']),
    'no filter': dict(gaussian_size=0),
    'filter of one': dict(gaussian_size=1),
    'filter of three': dict(gaussian_size=3, gaussian_sigma=0.7),
    'spatial kernel': dict(spatial_kernel=3),
    'maps side by side': dict(spatial_fusion='concat'),
    'two maps side by side': dict(
        spatial_fusion='concat', pools=('avg', 'max'), interior=False, arrangement='spatial'
    ),
    'softmax, side by side': dict(spatial_fusion='concat', interior_softmax=True),
    'channel with interior': dict(arrangement='channel'),
    'spatial with interior': dict(arrangement='spatial', interior_softmax=True),
}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def softmax(z):
    z = np.exp(z - z.max())
    return z / z.sum()


def weights(size, sigma):
    """The Gaussian by the book. A gate keeps its weights in float32."""
    if size <= 1:
        return np.ones(1)
    if sigma is None:
        sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    taps = [math.exp(-((i - (size - 1) / 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    return np.float32(np.array(taps) / sum(taps)).astype(np.float64)


def smooth(plane, taps, both):
    """A map filtered along H, and along W if both, with zeros around it."""
    (h, w), reach = plane.shape, len(taps) // 2
    out = np.zeros_like(plane)
    for i in range(h):
        for j in range(w):
            for a in range(-reach, reach + 1):
                for b in range(-reach, reach + 1) if both else (0,):
                    if 0 <= i + a < h and 0 <= j + b < w:
                        tap = taps[a + reach] * (taps[b + reach] if both else 1)
                        out[i, j] += tap * plane[i + a, j + b]
    return out


def entropy(v):
    p = softmax(v)
    return -sum(q * math.log(q) for q in p if q > 0)


def normalise(values, low, high):
    if values.max() == values.min():
        return np.full_like(values, low)
    return low + (high - low) * (values - values.min()) / (values.max() - values.min())


def interior(p, name, pools, softmaxed):
    factors = p.get(f'{name}_factors')
    if factors is None:
        return dict.fromkeys(pools, 1.0)
    factors = softmax(factors) if softmaxed else factors
    return dict(zip([k for k in ('avg', 'max', 'ent') if k in pools], factors, strict=True))


def channel_attention(
    x,
    p,
    pools=('avg', 'max', 'ent'),
    entropy_range=(0, 1),
    gaussian_size=5,
    gaussian_sigma=None,
    interior_softmax=False,
    **_,
):
    """Eq. 2-5: one sample (C, H, W) -> C'_A (C)."""
    taps = weights(gaussian_size, gaussian_sigma)
    stats = dict(
        avg=np.array([plane.mean() for plane in x]),
        max=np.array([smooth(plane, taps, both=False).max() for plane in x]),
        ent=normalise(np.array([entropy(plane.ravel()) for plane in x]), *entropy_range),
    )
    total = 0
    for pool, factor in interior(p, 'channel', pools, interior_softmax).items():
        hidden = np.maximum(p['mlp.0.weight'] @ stats[pool], 0)
        total = total + factor * (p['mlp.2.weight'] @ hidden)
    return total


def spatial_attention(
    x,
    p,
    pools=('avg', 'max', 'ent'),
    entropy_range=(0, 1),
    gaussian_size=5,
    gaussian_sigma=None,
    interior_softmax=False,
    spatial_fusion='sum',
    **_,
):
    """Eq. 6 and 7 (or Fig. 3 b): one sample (C, H, W) -> S'_A (H, W)."""
    taps = weights(gaussian_size, gaussian_sigma)
    h, w = x.shape[1:]
    stats = dict(
        avg=-x.mean(0),
        max=np.stack([smooth(plane, taps, both=True) for plane in x]).max(0),
        ent=normalise(
            np.array([[entropy(x[:, i, j]) for j in range(w)] for i in range(h)]), *entropy_range
        ),
    )
    factors = interior(p, 'spatial', pools, interior_softmax)
    maps = [factor * stats[pool] for pool, factor in factors.items()]
    maps = np.stack([sum(maps)] if spatial_fusion == 'sum' else maps)
    kernel = p['conv.weight'][0]
    size, reach = kernel.shape[-1], kernel.shape[-1] // 2
    maps = np.pad(maps, ((0, 0), (reach, reach), (reach, reach)))
    return sigmoid(
        np.array(
            [
                [(kernel * maps[:, i : i + size, j : j + size]).sum() for j in range(w)]
                for i in range(h)
            ]
        )
    )


def expected_cat(x, p, arrangement='parallel', formula='equation', **options):
    if arrangement != 'parallel':
        for step in arrangement.split('-'):
            if step == 'channel':
                x = x * sigmoid(channel_attention(x, p, **options))[:, None, None]
            else:
                x = x * spatial_attention(x, p, **options)
        return x
    c = channel_attention(x, p, **options)[:, None, None]
    s = spatial_attention(x, p, **options)
    c_w, s_w = softmax(p['exterior_logits']) if 'exterior_logits' in p else (1, 1)
    if formula == 'equation':
        return x * sigmoid(c * c_w) + x * sigmoid(s * s_w)
    return x * (c_w * sigmoid(c) + s_w * s)


@pytest.mark.parametrize('train', (True, False))
@pytest.mark.parametrize(
    'options', [*TABLE_6.values(), *OPTIONS.values()], ids=[*TABLE_6, *OPTIONS]
)
def test_equations(options, train):
    torch.manual_seed(0)
    gate = CAT(8, reduction=2, **options).double().train(train)
    for tensor in gate.state_dict().values():
        tensor.normal_()
    p = {name: tensor.numpy() for name, tensor in gate.state_dict().items()}
    for size in ((6, 5), (1, 4), (1, 1)):
        x = np.random.default_rng(0).normal(size=(2, 8, *size)) * 2
        y = gate(torch.from_numpy(x)).detach().numpy()
        expected = np.stack([expected_cat(sample, p, **options) for sample in x])
        np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-11)


def test_table_6_has_eleven_rows_and_all_differ():
    """The eleventh is the bare ResNet-50: no gate at all."""
    torch.manual_seed(0)
    x = torch.randn(1, 8, 6, 5, dtype=torch.float64)
    outputs = [x]
    for options in TABLE_6.values():
        gate = CAT(8, reduction=2, **options).double()
        for i, tensor in enumerate(gate.parameters()):
            tensor.data.copy_(torch.linspace(-1, 1 + i, tensor.numel()).view_as(tensor))
        outputs.append(gate(x))
    assert len(outputs) == 11
    for i, y in enumerate(outputs):
        assert not any(torch.allclose(y, other) for other in outputs[:i])


def test_start():
    """All factors start from 0, the exterior ones through a softmax from 1/2."""
    assert CAT(16).colla_factors() == dict(
        C_w=0.5, S_w=0.5, C_alpha=0, C_beta=0, C_gamma=0, S_alpha=0, S_beta=0, S_gamma=0
    )
    x = torch.randn(2, 16, 5, 5)
    # sigmoid(0) for the channels, sigmoid(sigmoid(0) / 2) for the positions
    torch.testing.assert_close(CAT(16)(x), x * (0.5 + 1 / (1 + math.exp(-0.25))))
    # (sigmoid(0) + sigmoid(0)) / 2
    torch.testing.assert_close(CAT(16, formula='algorithm')(x), x * 0.5)


def test_first_step_moves_the_interior_factors():
    # With a wide MLP: of four hidden units all may be dead, and then nothing moves.
    gate = CAT(64, reduction=1)
    gate(torch.randn(2, 64, 8, 8)).square().sum().backward()
    assert gate.channel_factors.grad.abs().min() > 0
    assert gate.spatial_factors.grad.abs().min() > 0


def test_colla_factors_are_read_as_they_act():
    gate = CAT(16, interior_softmax=True, pools=('max', 'avg'))
    with torch.no_grad():
        gate.exterior_logits.copy_(torch.tensor([1.0, 0.0]))
        gate.channel_factors.copy_(torch.tensor([0.0, 2.0]))
    factors = gate.colla_factors()
    assert factors['C_w'] == pytest.approx(math.e / (1 + math.e))
    assert factors['C_w'] + factors['S_w'] == pytest.approx(1)
    assert factors['C_beta'] == pytest.approx(math.e**2 / (1 + math.e**2))
    assert factors['C_alpha'] + factors['C_beta'] == pytest.approx(1)
    assert sorted(factors) == ['C_alpha', 'C_beta', 'C_w', 'S_alpha', 'S_beta', 'S_w']
    assert CAT(16, arrangement='channel', exterior=True).colla_factors().keys() == {
        'C_alpha',
        'C_beta',
        'C_gamma',
    }
    assert CAT(16, interior=False, exterior=False).colla_factors() == {}


def test_constant_entropies_become_the_lower_bound():
    for low, high in ((0, 1), (-1, 1)):
        for shape in ((2, 5), (2, 3, 4)):
            constant = torch.full(shape, 3.2)
            assert torch.equal(min_max(constant, low, high), torch.full(shape, float(low)))
            # Rounding is not texture.
            noisy = constant * (1 + 4 * torch.finfo(torch.float32).eps * torch.rand(shape))
            assert (min_max(noisy, low, high) - low).abs().max() < 1e-4


def test_entropies_are_normalised_sample_by_sample():
    entropies = torch.tensor([[1.0, 2.0, 3.0], [5.0, 9.0, 6.0]])
    torch.testing.assert_close(
        min_max(entropies, -1, 1), torch.tensor([[-1.0, 0.0, 1.0], [-1.0, 1.0, -0.5]])
    )


def test_gaussian_is_opencvs():
    assert gaussian(5)[2] / gaussian(5)[1] == pytest.approx(math.exp(1 / (2 * 1.1**2)), rel=1e-5)
    assert gaussian(7)[3] / gaussian(7)[1] == pytest.approx(math.exp(4 / (2 * 1.4**2)), rel=1e-5)
    assert gaussian(5).sum() == pytest.approx(1, abs=1e-6)
    assert gaussian(1).tolist() == [1]


def test_parameters():
    """A bias-free MLP, one 7 x 7 convolution and eight scalars."""
    gate = CAT(256)
    assert sum(p.numel() for p in gate.parameters()) == 2 * 256 * 16 + 49 + 8
    assert {name: tuple(p.shape) for name, p in gate.named_parameters()} == {
        'channel_factors': (3,),
        'spatial_factors': (3,),
        'exterior_logits': (2,),
        'mlp.0.weight': (16, 256),
        'mlp.2.weight': (256, 16),
        'conv.weight': (1, 1, 7, 7),
    }
