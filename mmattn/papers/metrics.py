"""What a column of a paper's table is called by our evaluators, and in which steps it comes.

A paper's column `AP` is `coco/bbox_mAP` of one run and `pascal_voc/AP` of another, as fractions;
its `top1_error` is what an `accuracy/top1` leaves of 100.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

# Of the network, not of a training: `mmattn.analysis.complexity` counts them.
COUNTED = ('params', 'gflops', 'gmac')
COCO = {'AP': '', 'AP50': '_50', 'AP75': '_75', 'APs': '_s', 'APm': '_m', 'APl': '_l'}
# One image in percent.
STEPS = {'ImageNet-1K': 100 / 50_000, 'CIFAR-100': 100 / 10_000}


@dataclass(frozen=True)
class Metric:
    """A column. Its value is `key` of an evaluation times `scale`, or for an `error` the rest of
    100. Two values differ by `step` at least (0 where the evaluator does not round)."""

    column: str
    key: str
    scale: float = 1.0
    error: bool = False
    step: float = 0.0

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return -1 if self.error else 1

    def read(self, metrics: Mapping[str, Any]) -> float | None:
        """The column's value of an evaluation, in percent; None if it has none (COCO's -1, which
        says that there are no such objects, is none)."""
        value: Any = metrics.get(self.key)
        if not is_number(value) or value < 0:
            return None
        value *= self.scale
        return 100 - value if self.error else value


def metrics_of(table: Mapping[str, Any]) -> dict[str, Metric]:
    """The columns of a table (of `paper_tables.yml`) that are trained, not counted, in its order.

    Raises:
        ValueError: for a column that no evaluator of the table's task gives.
    """
    found = {}
    for column in table['metrics']:
        if column not in COUNTED:
            found[column] = _metric(table, column)
    return found


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that is no float
        return False


def _metric(table: Mapping[str, Any], column: str) -> Metric:
    task, dataset = table['task'], table['dataset']
    step = table.get('granularity', {}).get(column)
    allowed: tuple[str, ...]
    if task == 'image-classification':
        allowed = ('top1', 'top5', 'top1_error', 'top5_error')
        name = column.removesuffix('_error')
        step = STEPS.get(dataset, 0.0) if step is None else step
        metric = Metric(column, f'accuracy/{name}', error=name != column, step=step)
    elif task == 'semantic-segmentation':
        allowed = ('mIoU',)
        metric = Metric(column, 'mIoU', step=0.01)  # mmseg rounds so
    elif task == 'instance-segmentation' or 'coco' in dataset.lower():
        allowed = tuple(COCO)
        kind = 'segm' if task == 'instance-segmentation' else 'bbox'
        # mmdet rounds a fraction to three digits
        metric = Metric(column, f'coco/{kind}_mAP{COCO.get(column)}', 100, step=0.1)
    else:
        allowed = ('AP', 'AP50', 'AP75')
        metric = Metric(column, f'pascal_voc/{column}', 100)
    if column not in allowed:
        raise ValueError(
            f'{task} on {dataset} has the columns {", ".join((*allowed, *COUNTED))}, got {column!r}'
        )
    return metric
