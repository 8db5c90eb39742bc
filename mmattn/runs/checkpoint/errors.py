"""Why a checkpoint is not loaded, in one line each."""

from mmattn.lines import one_line
from mmattn.runs.errors import UserError

HELP = 'if whoever made it may act as you, --trust-checkpoint lets it run'


class CheckpointError(UserError):
    """A checkpoint that is not loaded, in one line that says why."""

    def __init__(self, text: str) -> None:
        # Names of files and of what is in them are others' words.
        super().__init__(one_line(text))


class Damaged(CheckpointError):
    """It is no whole checkpoint: cut off, empty, of another format."""


class Unsafe(CheckpointError):
    """It wants more than data."""


class WrongHash(CheckpointError):
    """Its contents are not those that were published."""
