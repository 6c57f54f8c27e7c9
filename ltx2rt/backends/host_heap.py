"""The C library's free memory: given back to the system where it would be kept."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Return freed memory to the system. glibc keeps what lies between pieces in use: after making
    sessions of many large weights as much again as they hold. Other libraries do without.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
