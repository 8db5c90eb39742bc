"""What the command lines in tools/ are made of."""
from .hooks import EvaluateBeforeTraining
from .runner import Runner

__all__ = ['EvaluateBeforeTraining', 'Runner']
