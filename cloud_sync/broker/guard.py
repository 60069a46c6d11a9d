"""Run as a script: `python guard.py PARENT_PID COMMAND…` becomes COMMAND and dies when the parent dies.

A `kill -9` of the service must not leave its broker behind; on Linux the kernel sees to that (PR_SET_PDEATHSIG, which
survives exec). Elsewhere the pid file that the next start checks does.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the service ended before its broker started")
    os.execv(sys.argv[2], sys.argv[2:])
