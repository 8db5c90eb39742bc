"""The stand-ins against the compiled operators of mmcv, where both exist: on the CPU.

RoIPool, the focal losses, masked convolution and deformable attention mmcv compiles for GPUs alone.
"""

import sys

import pytest
import torch
from parity_cases import TOLERANCE, cases

from mmattn import mmcv_ops
from mmattn.mmcv_ops import operators


@pytest.fixture
def compiled():
    pytest.importorskip('mmcv.ops')
    if mmcv_ops.in_use().name != 'compiled':
        pytest.skip('mmcv has no compiled operators to compare with')
    return sys.modules['mmcv._ext']


@pytest.mark.parametrize(
    'dtype, function',
    [
        pytest.param(dtype, function, id=f'{name}-{options}-{dtype}')
        for name, options, dtype, function in cases()
    ],
)
def test_parity(dtype, function, compiled, run_on):
    results = []
    for extension in (operators, compiled):
        run_on(extension)
        torch.manual_seed(0)
        results.append(function())
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        found, expected = found.double(), expected.double()
        assert (found - expected).norm() <= TOLERANCE[dtype] * expected.norm()


@pytest.mark.parametrize('name', operators.__all__)
def test_signature(name, compiled):
    """A stand-in takes the arguments of the operator, in its order and by its names."""
    text = getattr(compiled, name).__doc__.splitlines()[0]
    expected = [part.split(':')[0] for part in text.split('(')[1].split(')')[0].split(', ') if part]
    code = getattr(operators, name).__code__
    assert list(code.co_varnames[: code.co_argcount]) == expected
