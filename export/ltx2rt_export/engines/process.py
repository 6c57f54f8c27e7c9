"""Run one engine build in a process of its own, hand its progress on, and say how it failed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx2rt import errors
from ltx2rt.backends.tensorrt_api import APIS
from ltx2rt.errors import EngineError
from ltx2rt_export.engines.builder import BuiltEngine, EngineRequest, OnStep

#: the worker; tests replace it to see what a crash looks like
#: -P: the current folder is no place for modules
WORKER = (sys.executable, "-P", "-m", "ltx2rt_export.engines.worker")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished build and the largest resident size of its process."""

    built: BuiltEngine
    peak_memory_bytes: int


def run_build(component: str, request: EngineRequest, on_step: OnStep | None = None) -> Outcome:
    """Build one engine in a new process.

    Args:
        component: named in errors.
        on_step: called with (phase, step, steps); may raise to cancel, which ends the process.

    Raises:
        EngineError: the build failed, or its process crashed; the partial engine is removed.
        UnsupportedError: the library is missing.
        OSError: the engine cannot be written.
    """
    # the worker finds what this process found, also in a checkout that is not installed
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with tempfile.TemporaryFile("w+") as noise:
        process = subprocess.Popen(
            WORKER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
            env=environment,
        )
        try:
            last = _talk(process, request, on_step)
            status = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            _remove(Path(request.output))
            raise
        if "built" in last and status == 0:
            return Outcome(_built(last["built"]), last["peak_memory_bytes"])
        _remove(Path(request.output))
        noise.seek(0)
        raise _failure(component, request, status, last, noise.read())


def _remove(partial: Path) -> None:
    """Remove a partial engine; never a device that the output was redirected to."""
    if partial.is_file():
        partial.unlink()


def _talk(
    process: subprocess.Popen[str], request: EngineRequest, on_step: OnStep | None
) -> dict[str, Any]:
    """Send the request, hand steps on, return the last document."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it crashed at once; the status says so
        process.stdin.write(json.dumps(dataclasses.asdict(request)))
        process.stdin.close()
    last: dict[str, Any] = {}
    for line in process.stdout:
        last = json.loads(line)
        if "phase" in last and on_step is not None:
            on_step(last["phase"], last["step"], last["steps"])
    return last


def _built(data: dict[str, Any]) -> BuiltEngine:
    def tensors(key: str) -> Any:
        return tuple((name, dtype, tuple(shape)) for name, dtype, shape in data[key])

    return BuiltEngine(
        **{
            **data,
            "inputs": tensors("inputs"),
            "outputs": tensors("outputs"),
            "warnings": tuple(data["warnings"]),
        }
    )


def _failure(
    component: str, request: EngineRequest, status: int, last: dict[str, Any], noise: str
) -> Exception:
    if "os_error" in last:
        return OSError(last["os_error"], os.strerror(last["os_error"]), last["filename"])
    what = f"building {component}"
    if "error" in last:
        kind: Callable[[str], Exception] = getattr(errors, last["kind"])
        return kind(f"{what}: {last['error']}")
    label = APIS[request.backend].label
    if status < 0:
        how = f"was ended by {signal.Signals(-status).name}"
        hint = "; the machine may be out of memory" if -status == signal.SIGKILL else ""
    else:
        how, hint = f"ended with status {status}", ""
    said = noise.strip().splitlines()
    detail = f": {said[-1][:300]}" if said else ""
    return EngineError(f"{what}: the {label} builder {how}{hint}{detail}")
