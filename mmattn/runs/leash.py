"""`leash.py LAUNCHER COMMAND [ARGS]` becomes the command, which does not outlive the launcher.

LAUNCHER is its process id. On Linux the kernel kills the command as soon as the launcher is gone,
however it went; elsewhere nothing can promise that.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    launcher, *command = sys.argv[1:]
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(launcher):
            sys.exit(128 + signal.SIGKILL)  # it went before the kernel knew
    # The launcher starts us with its signals held back.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execv(command[0], command)


if __name__ == '__main__':
    main()
