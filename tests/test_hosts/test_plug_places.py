"""`plug` where places are said by hand, named twice, or have several names."""

import copy

import pytest
import torch
from plug_cases import Block, Times, net
from torch import nn

from mmattn import SE, plug, unplug
from mmattn.hosts.plug import places


def test_what_is_said_wrong_without_a_dry_run():
    """The first forward says it, of any gate."""

    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Block(8)

        def forward(self, x):
            return self.body(x) if x.sum() > 0 else x

    for gate in (SE, Times):
        model = Asks()
        plug(model, gate, 'body', channels=7)
        with pytest.raises(ValueError, match=r'for 7 channels NCHW, .* gives \(1, 8, 4, 4\)'):
            model(torch.ones(1, 8, 4, 4))
    model = Asks()
    plug(model, SE, 'body', channels=8, layout='NLC', grid=(4, 4))
    with pytest.raises(ValueError, match=r'for 8 channels NLC, .* gives \(1, 8, 4, 4\)'):
        model(torch.ones(1, 8, 4, 4))


@pytest.mark.parametrize(
    'at, said, message',
    [
        ('layer2', dict(channels=7), r'7 NCHW was said .* gives \(2, 8, .* has 8 channels NCHW'),
        ('last', dict(channels=8), r'8 NCHW was said .* gives \(2, .*, 8\)'),
        ('last', dict(channels=9, layout='NHWC'), 'has 8 channels NHWC'),
        ('mixers.0', dict(channels=7, layout='NLC', grid=(8, 16)), 'has 8 channels NLC'),
        ('mixers.0', dict(channels=8), 'a layout of so many axes'),
        ('gridded', dict(channels=8, layout='NLC', grid=(8, 16)), 'neither channels= nor layout='),
    ],
)
def test_what_is_said_is_held_against_a_dry_run(at, said, message):
    model = net()
    keys = [*model.state_dict()]
    with pytest.raises(ValueError, match=message):
        plug(model, SE, at, **said)
    assert [*model.state_dict()] == keys


def test_a_place_that_a_pattern_names_twice_has_one_gate():
    """A sequence, its last child, and the last of that are one place."""
    inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), inner))
    assert [place.at for place in places(model)] == ['0', '1', '1.0', '1.1', '1.1.0', '1.1.1']
    assert [place.at for place in plug(model, Times, '**')] == ['0', '1', '1.0', '1.1.0']
    assert len([m for m in model.modules() if isinstance(m, Times)]) == 4
    unplug(model)
    # A name and a pattern are no two wishes; two names may be.
    assert len(plug(model, Times, (at for at in ('1', '**')))) == 4
    unplug(model)
    with pytest.raises(ValueError, match='1 and 1.1 are one place, as a sequence .* plug twice'):
        plug(model, Times, ['1', '1.1'])


def test_what_has_no_gate_among_many_is_counted():
    with pytest.raises(ValueError, match=r'\(3 of the \d+ that at= names\); .*places lists those'):
        plug(net(), SE, '**')


def test_a_module_of_two_names():
    """As in heads whose levels share their convolutions: it is gated wherever it runs."""

    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = nn.Conv2d(3, 3, 1)
            self.block = self.again = Block(3)

        def forward(self, x):
            return self.again(self.block(self.second(self.first(x))))

    model = Shares().eval()
    bare = copy.deepcopy(model)
    found = plug(model, Times, ['*st', 'block'])
    assert [str(place) for place in found] == [
        'first (Conv2d): 3 NCHW, runs 2 times, also called second',
        'block (Block): 3 NCHW, runs 2 times, also called again',
    ]
    assert model.first is model.second and model.block is model.again
    for module in (bare.first, bare.block):
        module.register_forward_hook(lambda _m, _i, out: 1.5 * out)
    x = torch.randn(1, 3, 4, 5)
    for made in (model, copy.deepcopy(model)):
        made.load_state_dict(model.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(made(x), bare(x))
    unplug(model)
    assert model.first is model.second and type(model.first) is nn.Conv2d
    assert model.state_dict().keys() == bare.state_dict().keys()
    with pytest.raises(ValueError, match='first and second are one place, .* two names of one'):
        plug(model, Times, ['first', 'second'])
