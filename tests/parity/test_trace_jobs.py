"""Graphs that are traced in processes of their own: each once, and what went wrong in a sentence.

That a build then takes exactly these from the cache is `GraphCache`'s part; a whole build with real
processes is run with `pytest -m graphs`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ltx2rt.bundle.manifest import BuildInputs
from ltx2rt.errors import EngineError, UnsupportedError
from ltx2rt.progress import Cancelled, Job, Progress
from ltx2rt_export import bundle
from ltx2rt_export.build_config import BuildConfig
from ltx2rt_export.catalog import traced_components
from ltx2rt_export.demo import write_demo_model
from ltx2rt_export.engines import trace_jobs

NAMES = ("text_head", "text_block", "vocoder", "video_decoder", "audio_decoder")

#: answers every request, and notes in a file what it was asked and by which process
ECHO = """
import json, os, sys
for line in sys.stdin:
    request = json.loads(line)
    with open(request["folder"] + "/asked", "a") as file:
        file.write(json.dumps([os.getpid(), request["component"], request["dtype"]]) + "\\n")
    {then}
    print(json.dumps({{}}), flush=True)
"""


class Kept:
    """A cache that has graphs of the components named."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def has(self, component: Any, dtype: str) -> bool:
        return component.name in self.names


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(then: str = "pass") -> None:
        command = (sys.executable, "-S", "-c", ECHO.format(then=then))
        monkeypatch.setattr(trace_jobs, "WORKER", command)

    return use


def trace(folder: Path, jobs: int, kept: Any = None, job: Job | None = None) -> list[Any]:
    components: Any = [SimpleNamespace(name=name, options={}) for name in NAMES]
    dtypes = dict.fromkeys(NAMES, "bfloat16") | {"vocoder": "float32"}
    inputs = BuildInputs(checkpoint="/model.safetensors")
    cache = kept or Kept()
    trace_jobs.trace_ahead(components, dtypes, inputs, cache, folder, jobs, job or Job())
    asked = folder / "asked"
    return [json.loads(line) for line in asked.read_text().splitlines()] if asked.exists() else []


def test_every_missing_graph_is_traced_once_in_its_dtype(worker: Any, tmp_path: Path) -> None:
    worker("import time; time.sleep(0.05)")
    steps: list[Progress] = []
    asked = trace(tmp_path, 2, Kept("text_head"), Job(on_progress=steps.append))
    dtypes = {name: "float32" if name == "vocoder" else "bfloat16" for name in NAMES[1:]}
    assert sorted((name, dtype) for _, name, dtype in asked) == sorted(dtypes.items())
    assert len({process for process, _, _ in asked}) == 2
    assert [(s.step, s.total) for s in steps] == [(i, 4) for i in range(5)]
    assert {s.detail for s in steps[1:]} == set(dtypes)


def test_one_missing_graph_needs_no_process(worker: Any, tmp_path: Path) -> None:
    worker("raise SystemExit(9)")
    assert trace(tmp_path, 4, Kept(*NAMES[1:])) == []


def test_errors_name_the_component(worker: Any, tmp_path: Path) -> None:
    refused = '{"error": "no such width.", "kind": "UnsupportedError"}'
    worker(f"print({refused!r}, flush=True); continue")
    with pytest.raises(UnsupportedError, match=r"^tracing text_head: no such width\.$"):
        trace(tmp_path, 1)


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ("print('no room', file=sys.stderr); sys.exit(3)", "ended with status 3: no room"),
        ("os.kill(os.getpid(), 9)", "was ended by SIGKILL; the machine may be out of memory"),
    ],
)
def test_a_crash_is_told(worker: Any, tmp_path: Path, then: str, said: str) -> None:
    worker(then)
    with pytest.raises(EngineError, match=f"^tracing text_head: its process {said}"):
        trace(tmp_path, 1)


def test_cancelling_ends_the_processes(worker: Any, tmp_path: Path) -> None:
    worker("import time; time.sleep(60)")
    job = Job()

    def cancel() -> None:
        while not (tmp_path / "asked").exists():
            time.sleep(0.01)
        job.cancel.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Cancelled):
        trace(tmp_path, 2, job=job)
    thread.join()
    for line in (tmp_path / "asked").read_text().splitlines():
        assert not Path(f"/proc/{json.loads(line)[0]}").exists()


@pytest.mark.graphs
def test_a_build_takes_what_processes_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "components_of", traced_components)  # as if none came along
    model = write_demo_model(tmp_path / "model")
    inputs = BuildInputs(checkpoint=str(model["checkpoint"]), gemma=str(model["gemma"]))
    parts = ("transformer_tail", "audio_decoder")
    made = {}
    for jobs in (1, 2):
        if jobs == 2:

            def refuse(*_: object) -> None:
                raise AssertionError("the build traced a graph itself")

            monkeypatch.setattr("ltx2rt_export.onnx.export_component", refuse)
        config = BuildConfig(components=parts, jobs=jobs, cache_dir=tmp_path / f"cache{jobs}")
        files = bundle.open_inputs(inputs, parts)
        manifest = bundle.build_bundle(files, inputs, tmp_path / f"{jobs}.bundle", config)
        made[jobs] = manifest.bundle_id, manifest.build_flags
    assert made[1] == made[2]
