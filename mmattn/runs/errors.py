"""Exceptions that end a tool with one line, and the exit codes of all tools."""

# An error of the user, a fault of the program before its first step, stopped by a signal that asks
# for it, interrupted from the keyboard. 70 and 75 are those of sysexits.h. agent.py, which starts
# processes again, knows them too. 1 is a fault later on, or the end of another process.
USER_ERROR, FAULT, STOPPED, INTERRUPTED = 2, 70, 75, 130
LOST = 1


class UserError(Exception):
    """Something the user can mend, told in one line.

    Args:
        message (str): What is wrong and what is allowed.
        everywhere (bool): Whether all processes of a training raise it together: one tells it then.
    """

    def __init__(self, message: str = '', everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


class Stopped(BaseException):
    """SIGTERM or SIGUSR2 has ended the run; like KeyboardInterrupt, no error to be handled."""
