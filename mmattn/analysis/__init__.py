"""What is measured, counted and drawn of gates; its hooks register with mmengine."""

from mmattn.registry import register_when_used

register_when_used('mmengine', 'HOOKS', f'{__name__}.hooks')
