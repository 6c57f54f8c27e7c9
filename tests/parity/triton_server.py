"""A real Triton Inference Server without GPU or container, from the wheel of nvidia-pytriton.

Its Python stub was built before numpy 2, so it runs in a virtual environment of its own, which is
set up once in the cache folder; the tests talk to it with `tritonclient`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ltx2rt.env import cache_dir
from tests.unit.test_house_rules import ROOT

#: what the stub needs; the server's own wheel asks for more than it uses
PACKAGES = ("numpy==1.26.4", "onnxruntime", "tokenizers", "av", "pillow")
SERVER = "nvidia-pytriton==0.7.0"
MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"


def environment() -> Path:
    """The virtual environment of the stub, set up if it is not there; skips where it cannot be."""
    if sys.platform != "linux" or MINOR not in ("3.10", "3.11", "3.12"):
        pytest.skip(f"no Triton server for {sys.platform} and Python {MINOR} in {SERVER}")
    place = cache_dir() / f"triton-server-{MINOR}"
    if not (place / "complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        commands = [
            [sys.executable, "-m", "venv", str(place)],
            [str(place / "bin/pip"), "install", "-q", *PACKAGES],
            [str(place / "bin/pip"), "install", "-q", "--no-deps", SERVER],
        ]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"cannot set up a Triton server: {done.stderr[-300:]}")
        (place / "complete").touch()
    packages = place / f"lib/python{MINOR}/site-packages"
    (packages / "ltx2rt-here.pth").write_text(f"{ROOT}\n")  # the stub ignores PYTHONPATH
    return place


def _backends(packages: Path, folder: Path) -> Path:
    """The Python backend, with the stub of this Python beside it."""
    python = folder / "backends/python"
    python.mkdir(parents=True)
    home = packages / "pytriton/tritonserver"
    for path in (home / "backends/python").iterdir():
        (python / path.name).symlink_to(path)
    stub = home / f"python_backend_stubs/{MINOR}/triton_python_backend_stub"
    (python / stub.name).unlink(missing_ok=True)
    shutil.copy(stub, python)
    (python / stub.name).chmod(0o755)
    return python.parent


@dataclass
class Triton:
    process: subprocess.Popen[bytes]
    http: int
    grpc: int
    log: Path

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/health/ready") as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _prefix() -> str:
    """What the names of this process's regions of shared memory begin with."""
    return f"ltx2rt-test-{os.getpid()}"


def shared_memory() -> int:
    """Bytes of the regions that servers of this process hold."""
    return sum(path.stat().st_size for path in Path("/dev/shm").glob(f"{_prefix()}*"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def packed_environment(recipe: str, folder: Path) -> Path:
    """The stub's environment as an archive that works elsewhere.

    Args:
        recipe: shell commands that pack `env` into `env.tar.gz`; their packages are those that
            `environment` has already.
        folder: where it is made.
    """
    there = environment() / f"lib/python{MINOR}/site-packages"
    make, fetch, *pack = recipe.strip().splitlines()
    assert " pip install " in fetch.replace("/", " ")
    # with what its own path files name
    line = f'import site; site.addsitedir("{there}")'
    link = f"echo '{line}' > env/lib/python{MINOR}/site-packages/there.pth"
    script = "\n".join([f"{make} --without-pip", link, *pack, "rm -r env"])
    subprocess.run(["bash", "-ec", script], cwd=folder, check=True)
    return folder / "env.tar.gz"


@contextmanager
def triton_server(repository: Path, folder: Path, *, on_path: bool = True) -> Iterator[Triton]:
    """Serves a model repository on loopback; leaves nothing in /dev/shm.

    Args:
        repository: its models.
        folder: of its log.
        on_path: whether the stub finds its environment on `PATH`; the repository names one if not.
    """
    place = environment()
    packages = place / f"lib/python{MINOR}/site-packages"
    http, grpc, metrics = (_free_port() for _ in range(3))
    prefix, log = _prefix(), folder / "triton.log"
    libraries = [packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    variables = {
        **os.environ,
        "PATH": f"{place}/bin:{os.environ['PATH']}" if on_path else os.environ["PATH"],
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
    }
    command = [
        packages / "pytriton/tritonserver/bin/tritonserver",
        f"--model-repository={repository}",
        f"--backend-directory={_backends(packages, folder)}",
        "--disable-auto-complete-config", "--model-config-name=cpu",
        "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1",
        f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}",
        "--allow-gpu-metrics=false", "--exit-timeout-secs=5", "--model-control-mode=explicit",
        "--load-model=*", f"--backend-config=python,shm-region-prefix-name={prefix}",
    ]  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=file, stderr=subprocess.STDOUT, env=variables, start_new_session=True,
        )  # fmt: skip
    server = Triton(process, http, grpc, log)
    try:
        until = time.monotonic() + 60
        while not server.is_ready():
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < until, log.read_text(errors="replace")[-3000:]
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        for left in Path("/dev/shm").glob(f"{prefix}*"):
            left.unlink()
