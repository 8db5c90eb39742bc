from typing import Any

from mmpretrain.datasets import CIFAR100
from mmpretrain.registry import DATASETS

from mmattn.registry import register


@register(DATASETS)
class DigitsCIFAR100(CIFAR100):
    """CIFAR-100 files with other contents, as `make_digits.py` writes them.

    The reader is mmpretrain's own; only its checksums, which are those of the published files, are
    dropped, and with them the download that a wrong checksum starts.
    """

    train_list = [['train', None]]
    test_list = [['test', None]]
    meta = dict(CIFAR100.meta, md5=None)

    def __init__(self, data_root: str, **kwargs: Any) -> None:
        super().__init__(data_root=data_root, **{'download': False, **kwargs})
