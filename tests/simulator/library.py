"""Compile the simulated driver and load it as this process's `libcuda.so.1`."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "driver"

#: the name that cuda-bindings ask the loader for; a library of that name that is loaded wins
SONAME = "libcuda.so.1"

FLAGS = ("-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


class SimulatorUnavailableError(Exception):
    """The simulated driver cannot run here; says why."""


@functools.cache
def load_library() -> ctypes.CDLL:
    """The library, compiled if its sources changed. Loaded once a process, and stays.

    Raises:
        SimulatorUnavailableError: there is a real driver, no C compiler or no `cuda.h`.
    """
    _refuse_real_driver()
    return ctypes.CDLL(str(_compiled(_compiler(), _headers())), mode=ctypes.RTLD_GLOBAL)


def _refuse_real_driver() -> None:
    try:
        ctypes.CDLL(SONAME)
    except OSError:
        return
    raise SimulatorUnavailableError("this machine has an NVIDIA driver")


def _compiler() -> str:
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name and (found := shutil.which(name)):
            return found
    raise SimulatorUnavailableError("no C compiler is installed")


def _headers() -> Path:
    """The folder of CUDA's own `cuda.h`, so that every entry has its true arguments."""
    found = importlib.util.find_spec("triton")
    for place in found.submodule_search_locations if found else None or ():
        folder = Path(place) / "backends" / "nvidia" / "include"
        if (folder / "cuda.h").is_file():
            return folder
    raise SimulatorUnavailableError("no cuda.h is installed (Triton brings one)")


def _compiled(compiler: str, headers: Path) -> Path:
    sources = sorted(SOURCES.glob("*.[ch]"))
    digest = hashlib.sha256("\0".join((compiler, str(headers), *FLAGS)).encode())
    for source in sources:
        digest.update(source.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"ltx2rt-simulator-{os.getuid()}"
    target = folder / digest.hexdigest()[:24] / SONAME
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{os.getpid()}.part")
    units = [str(s) for s in sources if s.suffix == ".c"]
    command = [compiler, *FLAGS, f"-Wl,-soname,{SONAME}", "-I", str(headers), "-o", str(part)]
    subprocess.run([*command, *units, "-lpthread"], check=True)
    part.replace(target)
    return target
