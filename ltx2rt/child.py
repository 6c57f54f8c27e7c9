"""A process of ours that another one started: it ends with it, and says nothing but its lines."""

from __future__ import annotations

import os
import signal
import sys
from typing import TextIO


def end_with_parent() -> None:
    """Have the kernel end this process when the thread that started it is gone, which may have been
    killed: a library may hold Python's lock for minutes, so that nothing here could. Elsewhere than
    on Linux it ends at its next step, which nobody reads.
    """
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def own_lines() -> TextIO:
    """What the parent reads; what libraries print to stdout goes to stderr from now on."""
    lines = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    return lines
