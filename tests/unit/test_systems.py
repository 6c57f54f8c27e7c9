"""Other systems than Linux, as far as one can look from here: what they lack is taken away, every
module is imported and every command asked for its help.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ltx2rt import machine
from tests.unit.test_house_rules import tracked

#: modules that a system has not
ABSENT = {
    "win32": ["fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"],
    "darwin": ["msvcrt", "winreg", "spwd"],
}
SCRIPT = """
import importlib, os, pkgutil, signal, sys, json
system, absent = sys.argv[1], json.loads(sys.argv[2])
# what others need is there before it is taken away
import argparse, asyncio, av, concurrent.futures, ctypes, decimal, http.client, logging, numpy
import multiprocessing, onnxruntime, PIL.Image, PIL.ImageCms, shutil, sqlite3, ssl, subprocess
import tempfile, tokenizers, tqdm
import urllib.request, uuid, zipfile
for name in ("starlette.applications", "uvicorn", "prometheus_client", "h11", "python_multipart"):
    importlib.import_module(name)
for name in absent:
    sys.modules[name] = None
sys.platform = system
if system == "win32":
    for name in ("sysconf", "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "killpg", "getuid", "fork"):
        delattr(os, name)
    for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGALRM", "pthread_sigmask", "setitimer"):
        delattr(signal, name)
import ltx2rt
names = [m.name for m in pkgutil.walk_packages(ltx2rt.__path__, "ltx2rt.")]
wrong = {}
for name in names:
    if name.endswith("__main__") and name != "ltx2rt.cli.__main__":
        continue
    try:
        importlib.import_module(name)
    except ImportError as error:  # tritonclient and the like: extras
        if (error.name or "").partition(".")[0] in (*absent, "ltx2rt"):
            wrong[name] = str(error)
    except Exception as error:
        wrong[name] = f"{type(error).__name__}: {error}"
from ltx2rt.cli.__main__ import COMMANDS, main
for command in COMMANDS:
    try:
        main([command, "--help"])
    except SystemExit as end:
        if end.code:
            wrong[command] = f"exit status {end.code}"
from ltx2rt.cli.signals import ending_signals
with ending_signals():
    pass
sys.stderr.write(json.dumps([len(names), wrong]))
"""


@pytest.mark.parametrize("system", sorted(ABSENT))
def test_every_module_is_imported_on(system: str) -> None:
    command = [sys.executable, "-c", SCRIPT, system, json.dumps(ABSENT[system])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, wrong = json.loads(done.stderr.splitlines()[-1])
    assert count > 100
    assert not wrong


def test_memory_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """`MEMORYSTATUSEX` is 64 bytes: two of 32 bits, seven of 64."""

    class Kernel:
        def GlobalMemoryStatusEx(self, reference: Any) -> int:  # noqa: N802
            status = reference._obj
            assert status.length == ctypes.sizeof(status) == 8 + 7 * 8
            status.total = 32 << 30
            return 1

    small = {"c_ulong": ctypes.c_uint32}  # as it is there
    for name, kind in small.items():
        monkeypatch.setattr(ctypes, name, kind)
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: Kernel(), raising=False)
    monkeypatch.setattr(machine.sys, "platform", "win32")
    assert machine.machine_bytes(Path("/none")) == 32 << 30


def test_installing_an_extra_is_said_in_one_place() -> None:
    """A text that names the package as an index has it would be wrong in a checkout."""
    sources = (p for p in tracked("ltx2rt/*.py", "export/*.py", "kernels/*.py"))
    wrong = [str(p) for p in sources if "install '" + "ltx2rt[" in p.read_text(encoding="utf-8")]
    assert [Path(p).name for p in wrong] == ["install.py"]  # its docstring shows one
