"""The reference ops against their equations in plain numpy, and their gradients by gradcheck."""

import math

import numpy as np
import pytest
import torch

from mmattn import ops
from mmattn.ops import reference

N, C, H, W = 2, 3, 4, 3
TAPS = [0.1, 0.2, 0.4, 0.2, 0.1]


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors of these tests are tiny: threads would cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rand(*shape):
    return np.random.default_rng(len(shape) + sum(shape)).normal(size=shape)


X = rand(N, C, H, W)
FACTORS = dict(
    nc=rand(N, C),
    nhw=rand(N, H, W),
    nch=rand(N, C, H),
    ncw=rand(N, C, W),
    nh=rand(N, H),
    nw=rand(N, W),
)


def tensors(*axes, grad=False):
    arrays = [X, *(FACTORS[a] for a in axes)]
    return [torch.from_numpy(a.copy()).requires_grad_(grad) for a in arrays]


GATES = {
    'channel_scale': (('nc',), 'nchw,nc->nchw'),
    'spatial_scale': (('nhw',), 'nchw,nhw->nchw'),
    'product_scale': (('nc', 'nhw'), 'nchw,nc,nhw->nchw'),
    'coord_scale': (('nch', 'ncw'), 'nchw,nch,ncw->nchw'),
}


@pytest.mark.parametrize('op', GATES)
def test_products(op):
    axes, equation = GATES[op]
    expected = np.einsum(equation, X, *(FACTORS[a] for a in axes))
    np.testing.assert_allclose(getattr(reference, op)(*tensors(*axes)).numpy(), expected)
    assert torch.autograd.gradcheck(getattr(reference, op), tensors(*axes, grad=True))


def test_sum_scale():
    c, s = FACTORS['nc'], FACTORS['nhw']
    expected = np.einsum('nchw,nc->nchw', X, c) + np.einsum('nchw,nhw->nchw', X, s)
    np.testing.assert_allclose(reference.sum_scale(*tensors('nc', 'nhw')).numpy(), expected)
    assert torch.autograd.gradcheck(reference.sum_scale, tensors('nc', 'nhw', grad=True))


@pytest.mark.parametrize('dual', (False, True))
def test_rank1_scale(dual):
    first = [FACTORS[a] for a in ('nc', 'nh', 'nw')]
    second = [np.cos(f) for f in first] if dual else None
    expected = np.empty_like(X)
    for n, c, h, w in np.ndindex(X.shape):
        a = first[0][n, c] * first[1][n, h] * first[2][n, w]
        if dual:
            a += (1 - a) * (second[0][n, c] * second[1][n, h] * second[2][n, w])
        expected[n, c, h, w] = X[n, c, h, w] * a
    flat = [torch.from_numpy(a.copy()).requires_grad_() for a in (X, *first, *(second or ()))]

    def run(x, *factors):
        return reference.rank1_scale(x, factors[:3], factors[3:] or None)

    np.testing.assert_allclose(run(*flat).detach().numpy(), expected)
    assert torch.autograd.gradcheck(run, flat)


def test_channel_pool():
    (x,) = tensors()
    avg, peak = reference.channel_pool(x, maximum=True)
    for n in range(N):
        for c in range(C):
            assert avg[n, c].item() == pytest.approx(X[n, c].mean())
            assert peak[n, c].item() == X[n, c].max()
    assert len(reference.channel_pool(x)) == 1
    assert torch.autograd.gradcheck(lambda x: reference.channel_pool(x, True), tensors(grad=True))


def test_strip_pool():
    (x,) = tensors()
    ch, cw, hw = reference.strip_pool(x, channel=True)
    np.testing.assert_allclose(ch.numpy(), np.einsum('nchw->nch', X) / W)
    np.testing.assert_allclose(cw.numpy(), np.einsum('nchw->ncw', X) / H)
    np.testing.assert_allclose(hw.numpy(), np.einsum('nchw->nhw', X) / C)
    assert len(reference.strip_pool(x)) == 2
    assert torch.autograd.gradcheck(lambda x: reference.strip_pool(x, True), tensors(grad=True))


def test_spatial_pool():
    x, c = tensors('nc')
    avg, peak = reference.spatial_pool(x, c)
    for n, h, w in np.ndindex(N, H, W):
        values = [X[n, i, h, w] * FACTORS['nc'][n, i] for i in range(C)]
        assert avg[n, h, w].item() == pytest.approx(sum(values) / C)
        assert peak[n, h, w].item() == pytest.approx(max(values))
    assert torch.autograd.gradcheck(reference.spatial_pool, tensors('nc', grad=True))


def entropy(values):
    total = sum(math.exp(v) for v in values)
    return -sum(math.exp(v) / total * math.log(math.exp(v) / total) for v in values)


def low_pass(plane, both):
    out = np.zeros_like(plane)
    for i, j in np.ndindex(plane.shape):
        for a in range(-2, 3):
            for b in range(-2, 3) if both else (0,):
                if 0 <= i + a < H and 0 <= j + b < W:
                    out[i, j] += TAPS[a + 2] * (TAPS[b + 2] if both else 1) * plane[i + a, j + b]
    return out


def test_entropy_pool():
    (x,) = tensors()
    taps = torch.tensor(TAPS, dtype=torch.float64)
    (c_avg, c_max, c_ent), (s_avg, s_max, s_ent) = reference.entropy_pool(x, taps)
    for n, c in np.ndindex(N, C):
        assert c_avg[n, c].item() == pytest.approx(X[n, c].mean())
        assert c_max[n, c].item() == pytest.approx(low_pass(X[n, c], both=False).max())
        assert c_ent[n, c].item() == pytest.approx(entropy(X[n, c].ravel()))
    for n in range(N):
        smooth = np.stack([low_pass(plane, both=True) for plane in X[n]])
        for h, w in np.ndindex(H, W):
            assert s_avg[n, h, w].item() == pytest.approx(X[n, :, h, w].mean())
            assert s_max[n, h, w].item() == pytest.approx(smooth[:, h, w].max())
            assert s_ent[n, h, w].item() == pytest.approx(entropy(X[n, :, h, w]))

    def run(x):
        channel, spatial = reference.entropy_pool(x, taps)
        return *channel, *spatial

    assert torch.autograd.gradcheck(run, tensors(grad=True))


@pytest.mark.parametrize('channel', (False, True))
@pytest.mark.parametrize('spatial', (False, True))
def test_entropy_pool_gives_what_is_asked(channel, spatial):
    (x,) = tensors()
    taps = torch.tensor(TAPS, dtype=torch.float64)
    everything = reference.entropy_pool(x, taps)
    for bits in range(8):
        avg, peak, ent = (bool(bits & 1 << i) for i in range(3))
        some = reference.entropy_pool(x, taps, channel, spatial, avg=avg, max=peak, ent=ent)
        for axis, stats, full in zip((channel, spatial), some, everything, strict=True):
            for asked, stat, expected in zip((avg, peak, ent), stats, full, strict=True):
                assert (stat is not None) == (axis and asked)
                assert stat is None or torch.equal(stat, expected)


def test_one_tap_is_no_filter():
    (x,) = tensors()
    (_, c_max, _), (_, s_max, _) = reference.entropy_pool(x, torch.ones(1, dtype=x.dtype))
    torch.testing.assert_close(c_max, x.amax((2, 3)))
    torch.testing.assert_close(s_max, x.amax(1))


def test_entropy_of_extremes():
    """One value that outweighs all others is certainty; none that does is log(n)."""
    x = torch.zeros(1, 2, 3, 3)
    x[0, 0, 1, 1] = 1e4
    (_, _, c_ent), _ = reference.entropy_pool(x, torch.ones(1))
    torch.testing.assert_close(c_ent, torch.tensor([[0, math.log(9)]]))


@pytest.mark.parametrize('dtype', (torch.float16, torch.bfloat16, torch.float32))
def test_one_rounding(dtype):
    """Statistics of a half-precision map are float32; its product is rounded once."""
    x = torch.from_numpy(X * 100).to(dtype)
    c, s = (torch.from_numpy(FACTORS[a]).float() for a in ('nc', 'nhw'))
    for stat in (
        *reference.channel_pool(x, True),
        *reference.strip_pool(x, True),
        *reference.spatial_pool(x, c),
    ):
        assert stat.dtype == torch.float32
    y = reference.product_scale(x, c, s)
    assert y.dtype == dtype
    exact = x.double() * c.double()[:, :, None, None] * s.double()[:, None]
    torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize('op', ('channel_scale', 'spatial_scale', 'product_scale', 'sum_scale'))
def test_wrong_factor(op):
    x, c, s = tensors('nc', 'nhw')
    right = dict(channel_scale=(c,), spatial_scale=(s,)).get(op, (c, s))
    getattr(ops, op)(x, *right)
    for i, factor in enumerate(right):
        wrong = list(right)
        wrong[i] = factor[..., :1]
        with pytest.raises(ValueError, match='must be'):
            getattr(ops, op)(x, *wrong)
