"""Runs a script that imports mmdet or mmcv.ops before mmattn, unchanged.

python -m mmattn.mmcv_ops tools/train.py CONFIG ...
"""

import os
import runpy
import sys

if __name__ == '__main__':
    if len(sys.argv) < 2:
        sys.exit('usage: python -m mmattn.mmcv_ops SCRIPT [ARGUMENT ...]')
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name='__main__')
