"""What the command lines in tools/ are made of."""

import os

__all__ = ['CPUAmpOptimWrapper', 'EvaluateBeforeTraining', 'PretrainedHook', 'Runner']

if not os.environ.get('MMATTN_READ_ONLY'):  # see mmattn/__init__.py
    from .amp import CPUAmpOptimWrapper
    from .hooks import EvaluateBeforeTraining
    from .pretrained import PretrainedHook
    from .runner import Runner
