"""How a rank ends with the one that started it, and runs before others. Imports nothing that takes time: until this has run,
a rank may be orphaned."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
# Real-time priorities are no way here: Gloo's threads spin while another of the rank holds what they need, and would keep it
# from running.
HIGHEST_NICENESS = -20


def die_with_parent() -> None:
    """The kernel kills this process when the one that started it dies, however it dies."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    # Ctrl-C reaches the whole process group; the launcher ends its ranks in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def prefer() -> None:
    """Before other processes of this machine, where that is allowed; threads that are made later come along."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, HIGHEST_NICENESS)
    except PermissionError:
        pass
