from typing import Any

import torch
from mmdet.models.dense_heads import RetinaHead
from mmdet.registry import MODELS
from torch import Tensor

from mmattn.registry import register


@register(MODELS)
class EMARetinaHead(RetinaHead):
    """RetinaNet's head with Detectron2's loss: divided by a moving average of the positive anchors.

    MMDetection divides the losses of a step by its own number of positive anchors, which varies
    much where a GPU has few images. Detectron2, since February 2020, divides them by
    n = 0.9 n + 0.1 max(1, positive anchors of the step), from n = 100 on. As there, each process
    has its own n. Here it is a buffer: training in one process that is resumed goes on with its n,
    in several they all go on with the first one's, which alone is in the checkpoint.

    Args:
        momentum (float): 0.9 in the formula; in [0, 1).
        initial_normalizer (float): 100 in the formula; positive.
        args, kwargs: As the upstream head's.

    Raises:
        ValueError: for `momentum` or `initial_normalizer` out of range.
    """

    def __init__(
        self,
        *args: Any,
        momentum: float = 0.9,
        initial_normalizer: float = 100.0,
        **kwargs: Any,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f'momentum must be in [0, 1), got {momentum!r}')
        if not initial_normalizer > 0:
            raise ValueError(f'initial_normalizer must be positive, got {initial_normalizer!r}')
        super().__init__(*args, **kwargs)
        self.momentum = momentum
        self.register_buffer('loss_normalizer', torch.tensor(float(initial_normalizer)))

    def get_targets(self, *args: Any, **kwargs: Any) -> tuple:
        """Upstream's targets; the fifth, by which both losses are divided, is the average n."""
        labels, label_weights, bbox_targets, bbox_weights, _, *rest = super().get_targets(
            *args, **kwargs
        )
        average = self._updated([level < self.num_classes for level in labels])
        return (labels, label_weights, bbox_targets, bbox_weights, average, *rest)

    def _updated(self, positive: list[Tensor]) -> Tensor:
        """The average after a step whose anchors are these bools; without waiting for a GPU."""
        count = torch.stack([level.sum() for level in positive]).sum().clamp(min=1)
        self.loss_normalizer.lerp_(count.to(self.loss_normalizer), 1 - self.momentum)
        return self.loss_normalizer.clone()  # a graph may keep it, the next step writes the buffer
