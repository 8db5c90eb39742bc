"""What other libraries say that a user of ours has no use for and cannot mend, each by its name.

Everything else is heard. For the command lines, where the whole process is ours: `import mmattn` by
itself says nothing and changes nothing.
"""

import builtins
import logging
import re
import sys
import warnings
from typing import Any

# Start of the message, as a regular expression; category; module that warns, likewise.
WARNINGS = (
    # An optional package of mmdet's, for a metric that no config of ours uses.
    (r'faster_coco_eval is not installed', UserWarning, r'mmdet\.evaluation\.metrics\.'),
    # Theirs, from Python 3.12 on, while a file is compiled for the first time: it has no name yet
    # but its path.
    (r'.*invalid escape sequence', SyntaxWarning, r'.*[/\\]mm\w+[/\\]'),
    # How mmengine calls torch: the names have changed, the calls are right.
    (r'`broadcast_buffers` is deprecated', FutureWarning, r'mmengine\.model\.wrappers\.'),
    (r'`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated', FutureWarning, r'mm\w+\.'),
    (r'You are using `torch\.load` with `weights_only=False`', FutureWarning, r'mmengine\.'),
    # Defaults, which mmengine and mmseg announce where nobody has asked for anything else.
    (r'Setting MKL_NUM_THREADS environment variable', UserWarning, r'mmengine\.utils\.'),
    (r'Default ``avg_non_ignore`` is False', UserWarning, r'mmseg\.models\.losses\.'),
    (r'The draw is False, it means that the hook', UserWarning, r'mmseg\.engine\.hooks\.'),
)
# What goes through mmengine's `print_log`: optional packages of the codebases, and arguments of
# mmengine's own that its hooks themselves still use.
LOGGED = re.compile(
    r'Could not import OneDL(\. Skipping OneDL datasets\.)?$'
    r'|"FileClient" will be deprecated in future'
    r'|"HardDiskBackend" is the alias of "LocalBackend"'
)


def _is_noise(message: object) -> bool:
    return isinstance(message, str) and LOGGED.match(message) is not None


def _print(*values: object, **options: Any) -> None:
    """`print` for mmengine's `print_log`, whose log without a logger it is."""
    if not (len(values) == 1 and _is_noise(values[0])):
        builtins.print(*values, **options)


def install() -> None:
    """Leaves these out for the life of this process."""
    import mmengine.logging.logger  # noqa: F401
    from mmengine.logging import MMLogger

    def heard(self: logging.Filterer, record: logging.LogRecord) -> bool:
        return not _is_noise(record.msg) and logging.Logger.filter(self, record)

    vars(sys.modules['mmengine.logging.logger'])['print'] = _print
    MMLogger.filter = heard
    for message, category, module in WARNINGS:
        warnings.filterwarnings('ignore', message, category, module)
