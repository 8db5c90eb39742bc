"""What the command lines in tools/ are made of."""

from .amp import CPUAmpOptimWrapper
from .hooks import EvaluateBeforeTraining
from .pretrained import PretrainedHook
from .runner import Runner

__all__ = ['CPUAmpOptimWrapper', 'EvaluateBeforeTraining', 'PretrainedHook', 'Runner']
