"""`frozen_stages` and `norm_eval` reach the gates."""

import pytest
import torch
from host_cases import CASES, each_host, everywhere, gates, image, randomise
from torch.nn.modules.batchnorm import _BatchNorm


def stage_of(name):
    """The stage a module lies in, counted from 1; 0 is the stem."""
    parts = name.split('.')
    if parts[0] == 'layers':
        return int(parts[1]) + 1
    return int(parts[0].removeprefix('layer')) if parts[0].startswith('layer') else 0


@each_host
@pytest.mark.parametrize('frozen', [-1, 0, 2])
def test_frozen_stages(case, frozen):
    model = randomise(case.build(everywhere(case), frozen_stages=frozen))
    model.train()
    assert {stage_of(name) for name in gates(model)} >= {0, 1, 2, 3}
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    for name, gate in gates(model).items():
        learns = stage_of(name) > frozen
        assert all(p.requires_grad is learns for p in gate.parameters()), name
        assert all(m.training is learns for m in gate.modules()), name
    with torch.no_grad():
        model(image())
    for name, gate in gates(model).items():
        for key, value in gate.named_buffers():
            if key.endswith('running_mean'):
                still = torch.equal(value, buffers[f'{name}.{key}'])
                assert still is (stage_of(name) <= frozen), f'{name}.{key}'


@pytest.mark.parametrize('name', ['mmpretrain-resnet18', 'mmdet-resnet18', 'mmseg-resnet18-v1c'])
def test_frozen_from_the_start(name):
    """Upstream's ResNets freeze in their constructor, before anyone calls `train`."""
    case = CASES[name]
    model = case.build(everywhere(case), frozen_stages=1)
    for name, gate in gates(model).items():
        assert all(p.requires_grad is (stage_of(name) > 1) for p in gate.parameters())


@each_host
@pytest.mark.parametrize('norm_eval', [True, False])
def test_norm_eval(case, norm_eval):
    model = case.build(everywhere(case, ('CBAM', 'CoordAttention', 'DRTAM')), norm_eval=norm_eval)
    model.train()
    for gate in gates(model).values():
        norms = [m for m in gate.modules() if isinstance(m, _BatchNorm)]
        assert gate.training and norms
        assert all(norm.training is not norm_eval for norm in norms)
    model.train(False)
    assert not any(m.training for m in model.modules())
