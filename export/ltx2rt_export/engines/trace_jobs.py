"""Trace graphs in processes of their own, several at once, into the cache that a build takes them
from: the build itself stays the same, and so does what it makes.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ltx2rt import errors
from ltx2rt.bundle.manifest import BuildInputs
from ltx2rt.errors import EngineError
from ltx2rt.plain_data import to_plain
from ltx2rt.progress import Cancelled, Job
from ltx2rt_export.component import Component
from ltx2rt_export.engines.graphs import GraphCache

#: the worker; tests replace it to see what a crash looks like
WORKER = (sys.executable, "-P", "-m", "ltx2rt_export.engines.trace_worker")

#: seconds between two looks at whether the job was cancelled
LOOK = 0.2


def trace_ahead(
    components: Sequence[Component],
    dtypes: Mapping[str, str],
    inputs: BuildInputs,
    cache: GraphCache,
    folder: Path,
    jobs: int,
    job: Job,
) -> None:
    """Trace the components that no graph is kept of; nothing if there are fewer than two.

    Args:
        components: those of a build.
        dtypes: component -> dtype of its graph.
        inputs: the files, with absolute paths.
        cache: where graphs are looked for.
        folder: where that cache lies.
        jobs: processes at once.
        job: gets a step per component.

    Raises:
        EngineError: a process crashed; says which component it traced.
        Cancelled, Ltx2rtError: the job was cancelled; what a component's export raised.
    """
    missing = [c for c in components if not cache.has(c, dtypes[c.name])]
    if len(missing) < 2:
        return
    todo: queue.SimpleQueue[Component] = queue.SimpleQueue()
    for component in missing:
        todo.put(component)
    done: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()
    about = {"inputs": to_plain(inputs), "folder": str(folder)}
    job.report("trace", 0, len(missing))
    with contextlib.ExitStack() as opened:
        for _ in range(min(jobs, len(missing))):
            worker = _Worker()
            talk = threading.Thread(target=_feed, args=(worker, about, todo, dtypes, done))
            opened.callback(worker.close)
            opened.callback(talk.join)
            opened.callback(worker.kill)  # first: whoever waits for its answer gets none
            talk.start()
        for step in range(len(missing)):
            name = _next(done, job)
            job.report("trace", step + 1, len(missing), name)


def _next(done: queue.SimpleQueue[str | Exception], job: Job) -> str:
    """The next component that is traced; an interruption gets through meanwhile."""
    while True:
        with contextlib.suppress(queue.Empty):
            result = done.get(timeout=LOOK)
            if isinstance(result, Exception):
                raise result
            return result
        if job.cancel.is_set():
            raise Cancelled("cancelled while graphs were traced.")


def _feed(
    worker: _Worker,
    about: Mapping[str, Any],
    todo: queue.SimpleQueue[Component],
    dtypes: Mapping[str, str],
    done: queue.SimpleQueue[str | Exception],
) -> None:
    """Give one process a component after another, until none is left or one fails."""
    with contextlib.suppress(queue.Empty):
        while True:
            component = todo.get_nowait()
            name = component.name
            options = to_plain(component.options)
            request = {**about, "component": name, "options": options, "dtype": dtypes[name]}
            error = worker.trace(name, request)
            done.put(error or name)
            if error is not None:
                return


class _Worker:
    """One process."""

    def __init__(self) -> None:
        self._noise: IO[str] = tempfile.TemporaryFile("w+")
        # it finds what this process found, also in a checkout that is not installed
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self._process = subprocess.Popen(
            WORKER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            text=True,
            env=environment,
        )

    def kill(self) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let go of its files, once nobody waits for an answer."""
        with contextlib.suppress(BrokenPipeError):  # a request that it did not read
            self._process.communicate()
        self._noise.close()

    def trace(self, component: str, request: Mapping[str, Any]) -> Exception | None:
        """Have one component traced; what went wrong, if anything did."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it crashed; the status says so
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            return self._crash(component)
        answer = json.loads(line)
        if "error" not in answer:
            return None
        kind: Callable[[str], Exception] = getattr(errors, answer["kind"])
        return kind(f"tracing {component}: {answer['error']}")

    def _crash(self, component: str) -> EngineError:
        status = self._process.wait()
        if status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
            hint = "; the machine may be out of memory, and --jobs 1 takes less"
            hint = hint if -status == signal.SIGKILL else ""
        else:
            how, hint = f"ended with status {status}", ""
        self._noise.seek(0)
        said = self._noise.read().strip().splitlines()
        detail = f": {said[-1][:300]}" if said else ""
        return EngineError(f"tracing {component}: its process {how}{hint}{detail}")
