"""How a rank ends with the one that started it, and runs before others. Imports nothing that takes time: until this has run,
a rank may be orphaned."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
# Real-time priorities are no way here: Gloo's threads spin while another of the rank holds what they need, and would keep it
# from running.
HIGHEST_NICENESS = -20


def _descends_from(ancestor: int) -> bool:
    """Whether that process is this one's parent, or a parent's parent: a script may stand for the interpreter."""
    pid = os.getppid()
    while pid > 1 and pid != ancestor:
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                pid = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return pid == ancestor


def die_with_parent() -> None:
    """The kernel kills this process when the one that started it dies, however it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have died already: then others have adopted this process.
    if not _descends_from(int(os.environ.get("AUTODIST_PARENT", os.getppid()))):
        os.kill(os.getpid(), signal.SIGKILL)
    # Ctrl-C reaches the whole process group; the launcher ends its ranks in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def give_signs(say: Callable[[], None], every: float) -> None:
    """Says so often, in seconds, that this process is alive, from a thread of its own: a step may take as long as it likes."""

    def beat() -> None:
        while True:
            say()
            time.sleep(every)

    threading.Thread(target=beat, name="pulse", daemon=True).start()


def prefer() -> None:
    """Before other processes of this machine, where that is allowed; threads that are made later come along."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, HIGHEST_NICENESS)
    except PermissionError:
        pass
