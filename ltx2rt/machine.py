"""How much memory this machine has, on every system."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def machine_bytes(limits: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Memory of this machine, or what its container may use of it."""
    physical = physical_bytes()
    try:
        limit = limits.read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def physical_bytes() -> int:
    """Memory that is built in."""
    if sys.platform == "win32":
        return _windows_bytes()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _windows_bytes() -> int:
    """`ullTotalPhys` of `MEMORYSTATUSEX`, which `GlobalMemoryStatusEx` fills in."""
    import ctypes

    numbers = ("total", "free", "total_page", "free_page", "total_virtual", "free_virtual", "more")

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong) for name in numbers
        ]

    status = Status(length=ctypes.sizeof(Status))
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("Windows does not say how much memory there is.")
    return int(status.total)
