"""A small network with each gate learns the same with the kernels as with the equations.

100 steps (200 in the slow tests) on scikit-learn's handwritten digits. Nothing but the gate has a
kink, which makes much of rounding: so two runs stay as near each other as rounding has it.
"""

import concurrent.futures
import functools

import pytest
import torch
from needs import needs_kernels
from nodes import OURS, nodes
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import mmattn.attention as attention

pytestmark = needs_kernels
GATES = ('SE', 'ECA', 'CBAM', 'CoordAttention', 'CAT', 'DRTAM')
BATCH, TRAINED_ON = 32, 1500


@functools.cache
def digits():
    """Images (1797, 1, 8, 8) in [0, 1], and their classes; the last 297 are not trained on."""
    images, classes = load_digits(return_X_y=True)
    return torch.from_numpy(images).view(-1, 1, 8, 8) / 16, torch.from_numpy(classes)


def network(name, impl):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.SiLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16),
        getattr(attention, name)(16, impl=impl), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def train(net, dtype, autocast=False, steps=100):
    """The loss of each step, the weights at the end, and the share of new digits known by then."""
    images, classes = digits()
    images, net = images.to(dtype), net.to(dtype)
    optimizer = torch.optim.SGD(net.parameters(), 0.3, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(steps):
        at = torch.randint(TRAINED_ON, (BATCH,), generator=generator)
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            logits = net(images[at])
        if step == 0:
            assert bool(nodes(logits) & OURS) == (net[5].impl == 'fast')
        loss = F.cross_entropy(logits.to(dtype), classes[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach().double())
    weights = torch.cat([p.detach().double().flatten() for p in net.parameters()])
    with torch.no_grad():
        known = net.eval()(images[TRAINED_ON:]).argmax(1) == classes[TRAINED_ON:]
    return torch.stack(losses), weights, float(known.double().mean())


def distance(run, exact):
    """How far losses and weights of two runs are apart, each relative to its size."""
    return [float((a - b).norm() / b.norm()) for a, b in zip(run[:2], exact[:2], strict=True)]


@pytest.mark.parametrize('steps', [100, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', GATES)
def test_learns_as_the_equations(name, steps):
    """In float64 the two runs are one. In less precision, each is off the exact one by rounding:
    the kernels by no more than the equations are, up to chance."""
    runs = {
        (dtype, autocast, impl): train(network(name, impl), dtype, autocast, steps)
        for dtype, autocast, impl in (
            (torch.float64, False, 'reference'),
            (torch.float64, False, 'fast'),
            (torch.float32, False, 'reference'),
            (torch.float32, False, 'fast'),
            (torch.float32, True, 'reference'),
            (torch.float32, True, 'fast'),
        )
    }
    exact = runs[torch.float64, False, 'reference']
    losses, _, known = exact
    assert losses[-20:].mean() < losses[:20].mean() / 1.5 and known > 0.5, 'nothing was learned'
    assert max(distance(runs[torch.float64, False, 'fast'], exact)) < 1e-12
    for autocast, floor in ((False, 2e-6), (True, 0)):
        ours = distance(runs[torch.float32, autocast, 'fast'], exact)
        theirs = distance(runs[torch.float32, autocast, 'reference'], exact)
        assert 0 < theirs[0] < (steps / 1000 if autocast else 1e-4)  # a thing to compare with
        for a, b in zip(ours, theirs, strict=True):
            assert a < 3 * b + floor, (autocast, ours, theirs)
        assert abs(runs[torch.float32, autocast, 'fast'][2] - known) < 0.06


def test_two_threads_train_as_one_each():
    """To the bit: nothing of one training is seen by another of the same process."""
    names = ('DRTAM', 'CAT', 'CBAM', 'CoordAttention')
    train_few = functools.partial(train, dtype=torch.float32, steps=15)
    alone = [train_few(network(name, 'fast')) for name in names]
    nets = [network(name, 'fast') for name in names]  # drawn from the one generator of all threads
    for pair in (slice(0, 2), slice(2, 4)):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            together = list(pool.map(train_few, nets[pair]))
        for (losses, weights, _), (others, other_weights, _) in zip(
            alone[pair], together, strict=True
        ):
            assert torch.equal(losses, others) and torch.equal(weights, other_weights)
