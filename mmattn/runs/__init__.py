"""What the command lines in tools/ are made of."""

from .amp import CPUAmpOptimWrapper
from .hooks import EvaluateBeforeTraining
from .runner import Runner

__all__ = ['CPUAmpOptimWrapper', 'EvaluateBeforeTraining', 'Runner']
