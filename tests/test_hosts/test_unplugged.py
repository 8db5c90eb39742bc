"""A host without plugins is the upstream host."""

import pytest
import torch
from host_cases import CASES, each_host, image, in_mode, randomise, same


@each_host
@pytest.mark.parametrize('plugins', [None, []], ids=['None', 'empty'])
def test_same_network(case, plugins):
    ours, theirs = case.build(plugins), randomise(case.build_upstream())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        for mode in (False, True):
            results = []
            for model in (ours, theirs):
                torch.manual_seed(0)  # stochastic depth
                results.append(in_mode(model, mode)(image()))
            same(*results)
    same(ours.buffers(), theirs.buffers())


@each_host
def test_same_initial_values(case):
    """Zero-initialised residuals included, which upstream decides on by comparing block classes."""
    states = []
    for build in (case.build, case.build_upstream):
        torch.manual_seed(0)
        model = build()
        model.init_weights()
        states.append(model.state_dict().values())
    same(*states)


@each_host
@pytest.mark.parametrize('norm_eval', [True, False])
def test_same_modes(case, norm_eval):
    """What trains and learns, after the constructor and after each change of mode."""
    models = [
        build(norm_eval=norm_eval, frozen_stages=1) for build in (case.build, case.build_upstream)
    ]
    for mode in (None, True, False, True):
        ours, theirs = (in_mode(m, mode) if mode is not None else m for m in models)
        modes = {name: m.training for name, m in ours.named_modules()}
        for name, module in theirs.named_modules():
            assert modes[name] is module.training, name
        assert [p.requires_grad for p in ours.parameters()] == [
            p.requires_grad for p in theirs.parameters()
        ]


@each_host
def test_same_gradients_with_checkpoints(case):
    grads = []
    for build in (case.build, case.build_upstream):
        torch.manual_seed(0)
        model = in_mode(randomise(build(with_cp=True)))
        x = image().requires_grad_()
        sum(out.square().mean() for out in model(x)).backward()
        grads.append([x.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    same(*grads)


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
@pytest.mark.parametrize('depth', [18, 34, 50, 101, 152])
def test_all_depths(scope, depth):
    case = CASES[f'{scope}-resnet50']
    with torch.no_grad():
        ours, theirs = (
            build(depth=depth, base_channels=4, stem_channels=4)
            for build in (case.build, case.build_upstream)
        )
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_unknown_depth_is_upstreams_error():
    with pytest.raises(KeyError, match='invalid depth 17'):
        CASES['mmpretrain-resnet50'].build(depth=17)
