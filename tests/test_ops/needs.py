"""What tests of the CPU kernels need: a compiler. If it fails, they fail and are not skipped."""

import os

import pytest

from mmattn.ops.native import build

needs_kernels = pytest.mark.skipif(
    build.compiler() is None or os.environ.get('MMATTN_NATIVE') == '0',
    reason='no C++ compiler for the CPU kernels',
)
