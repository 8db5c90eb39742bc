from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

from mmattn.registry import register


@register(TRANSFORMS)
class DifficultAsObjects(BaseTransform):
    """Trains on the objects that Pascal VOC marks difficult as on all others, as Detectron2 does.

    MMDetection's `VOCDataset` marks them to be ignored, which takes them out of the ground truth:
    what a detector finds there is then background (unless the assigner has an `ignore_iof_thr`).
    Stands after `LoadAnnotations`, in training only: evaluation needs the marks, as a detection of
    a difficult object counts neither way.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Clear `gt_ignore_flags`, a bool for each box.

        Raises:
            KeyError: if there are none, as before `LoadAnnotations`.
        """
        if 'gt_ignore_flags' not in results:
            raise KeyError(
                'DifficultAsObjects must stand after LoadAnnotations in the pipeline: there are '
                'no gt_ignore_flags yet'
            )
        results['gt_ignore_flags'] = np.zeros_like(results['gt_ignore_flags'])
        return results
