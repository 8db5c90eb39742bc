"""mmcv's operators where mmcv was not compiled: nobody needs a compiler to train a detector.

`mmcv.ops` stands on a compiled module, `mmcv._ext`. Where it is missing or does not load,
importing this package supplies one whose functions are those of torch and torchvision.
"""

from .finder import InUse, in_use, install

__all__ = ['InUse', 'in_use', 'install']

install()
