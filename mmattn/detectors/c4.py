from typing import Any

from mmdet.models.detectors import FasterRCNN
from mmdet.registry import MODELS

from mmattn.registry import register


@register(MODELS)
class C4FasterRCNN(FasterRCNN):
    """Faster R-CNN without FPN: the backbone's last stage runs on each region, not on the image.

    MMDetection builds that stage as the shared head of its RoI head, apart from the backbone and
    without slots. Here it stays in the backbone, under its own name (`backbone.layer4`): one config
    gives all stages their gates, one checkpoint their weights, and what freezes the backbone or
    its norms reaches them all.

    Args:
        args, kwargs: As Faster R-CNN's. The backbone is a ResNet whose outputs do not include the
            last stage, `out_indices=(2,)` for four; the RoI head has no shared head of its own.

    Raises:
        ValueError: for a backbone without stages or with the last one among its outputs, or a RoI
            head with a shared head.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        name = type(self.backbone).__name__
        *shared, last = getattr(self.backbone, 'res_layers', [None])
        if last is None:
            raise ValueError(f'C4FasterRCNN takes a ResNet as its backbone, got {name}')
        if len(shared) in self.backbone.out_indices:
            raise ValueError(
                f"C4FasterRCNN's last stage runs on regions, so that {name} cannot have it among "
                f'its out_indices {tuple(self.backbone.out_indices)}; allowed: up to '
                f'{len(shared) - 1}'
            )
        if self.roi_head.with_shared_head:
            raise ValueError(
                "C4FasterRCNN's shared head is the backbone's last stage; "
                'roi_head.shared_head must be None'
            )
        self.backbone.res_layers = shared  # those that its forward runs
        # Past nn.Module, which would make it a child of the RoI head, too, so that the state dict
        # would hold it twice.
        object.__setattr__(self.roi_head, 'shared_head', getattr(self.backbone, last))
