"""Real TensorRT-RTX engines, built without a GPU: every attention fused, nothing transposed; the
cache; and how builds fail.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.engine_builds import random_weights
from ltx2rt.bundle.manifest import UNMASKED
from ltx2rt.cli.inspect import inspect_engine
from ltx2rt.errors import EngineError
from ltx2rt.progress import Cancelled, Job, Progress
from ltx2rt_export.engines import build as build_module
from ltx2rt_export.engines import process
from ltx2rt_export.engines.bias_rank import with_wide_biases
from ltx2rt_export.engines.builder import EngineRequest, _configure
from ltx2rt_export.engines.process import run_build
from ltx2rt_export.engines.weights import holding_weights, injected
from ltx2rt_export.quantize.linears import find_linears
from ltx2rt_export.quantize.lora_inputs import add_lora_inputs
from ltx2rt_export.unmasked import without_masks
from tests.parity.build_rtx import gemm_operands
from tests.parity.engine_models import builder, part_graph

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

#: clips of one bucket (no half-size stage) and of two
ONE, TWO = "96x64x9", "768x512x121"


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize(
    ("model", "targets"),
    [("tiny", ("sm89",)), ("tiny", ("sm120",)), ("real", ("sm89", "sm120"))],
    ids=["tiny-sm89", "tiny-sm120", "real"],
)
def test_every_attention_of_the_block_is_fused(
    model: str, precision: str, targets: tuple[str, ...], cache_dir: Path, tmp_path: Path
) -> None:
    graph = part_graph(model, "transformer_block", precision)
    made = builder(cache_dir, TWO, precision=precision, target=targets)
    entry = made.build(graph, precision, None, tmp_path, Job())
    report = inspect_engine(tmp_path / entry.file)
    assert report["attentions"] == 12  # six in each of two buckets
    assert report["kernels"]["fused_attentions"] == 12
    assert report["findings"] == []
    assert entry.targets == targets
    assert entry.bytes < 25e6
    # weights are inputs, in the layout and dtype that the loader gives
    weights = {t["name"]: (t["dtype"], t["shape"]) for t in report["weight_inputs"]}
    width = 4096 if model == "real" else 256
    dtype = "float8_e4m3fn" if precision == "fp8" else "bfloat16"
    assert weights["ff.net.0.proj.weight"] == (dtype, (width, 4 * width))


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_block_that_takes_loras_as_inputs(
    precision: str, cache_dir: Path, tmp_path: Path
) -> None:
    """At real size, for both targets: the two GEMMs beside each linear unfuse nothing."""
    linears = find_linears(part_graph("real", "transformer_block", "bf16"))
    assert len(linears) == 34
    graph = add_lora_inputs(part_graph("real", "transformer_block", precision), linears)
    made = builder(cache_dir, TWO, precision=precision)
    entry = made.build(graph, precision, None, tmp_path, Job())
    report = inspect_engine(tmp_path / entry.file)
    assert report["attentions"] == report["kernels"]["fused_attentions"] == 12
    assert report["findings"] == []
    assert [b.sizes["r"] for b in entry.buckets] == [(1, 64, 512)] * 2
    inputs = {t["name"]: (t["dtype"], tuple(t["shape"])) for t in report["inputs"]}
    assert inputs["ff.net.2.lora_A.weight"] == ("bfloat16", (16384, "r"))
    assert inputs["ff.net.2.lora_B.weight"] == ("bfloat16", ("r", 4096))
    assert sum("lora_" in name for name in inputs) == 2 * len(linears)


def test_one_bucket_and_a_batch_of_passes(cache_dir: Path, tmp_path: Path) -> None:
    graph = with_wide_biases(part_graph("tiny", "transformer_block", "bf16"))
    for batch, attentions in ((1, 6), (3, 12)):
        made = builder(cache_dir, ONE, precision="bf16", max_batch=batch)
        entry = made.build(graph, "bf16", None, tmp_path, Job())
        report = inspect_engine(tmp_path / entry.file)
        assert report["attentions"] == report["kernels"]["fused_attentions"] == attentions
        assert report["findings"] == []
        assert report["launches"]["copies"] < 20  # with biases of rank 1: 20
        assert report["launches"]["attentions"] == 6


def test_a_block_without_masks(cache_dir: Path, tmp_path: Path) -> None:
    """Nothing is added to scores, and every attention is fused all the same."""
    masked = part_graph("tiny", "transformer_block", "bf16")
    graph = without_masks(masked)
    assert graph is not None
    made = builder(cache_dir, ONE, precision="bf16")
    entry = made.build(
        graph, "bf16", None, tmp_path, Job(), variant=UNMASKED, measured=masked.component
    )
    assert "/transformer_block_unmasked/" in entry.file
    report = inspect_engine(tmp_path / entry.file)
    assert report["attentions"] == report["kernels"]["fused_attentions"] == 6
    assert report["findings"] == []
    assert not [t["name"] for t in report["inputs"] if t["name"].endswith("_bias")]


def test_head_and_tail_transpose_nothing(cache_dir: Path, tmp_path: Path) -> None:
    for name in ("transformer_head", "transformer_tail"):
        graph = part_graph("tiny", name, "bf16")
        assert graph.transposed  # linear weights are laid out once, not at every call
        made = builder(cache_dir, ONE, precision="bf16")
        entry = made.build(graph, "bf16", None, tmp_path, Job())
        assert inspect_engine(tmp_path / entry.file)["findings"] == []


def test_second_build_comes_from_the_cache(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = part_graph("tiny", "transformer_tail", "bf16")
    said: list[Progress] = []
    first = builder(cache_dir, ONE, precision="bf16").build(
        graph, "bf16", None, tmp_path / "a", Job()
    )
    monkeypatch.setattr(build_module, "run_build", lambda *_: pytest.fail("built again"))
    second = builder(cache_dir, ONE, precision="bf16").build(
        graph, "bf16", None, tmp_path / "b", Job(said.append)
    )
    assert said[-1].detail == "from the cache"
    assert first == second
    assert (tmp_path / "a" / first.file).read_bytes() == (tmp_path / "b" / second.file).read_bytes()


def test_an_interrupted_build_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_all(job: Job) -> list[str]:
        made = builder(tmp_path / "cache", ONE, precision="bf16")
        return [
            made.build(part_graph("tiny", name, "bf16"), "bf16", None, tmp_path, job).file
            for name in ("transformer_head", "transformer_tail")
        ]

    job = Job()

    def stop_in_tail(progress: Progress) -> None:
        if progress.stage == "build transformer_tail" and progress.detail:
            job.cancel.set()

    job.on_progress = stop_in_tail
    with pytest.raises(Cancelled):
        build_all(job)
    assert not list((tmp_path / "cache/engines").glob(".build-*"))
    said: list[Progress] = []
    assert len(build_all(Job(said.append))) == 2
    last = {p.stage: p.detail for p in said}
    assert last["build transformer_head"] == "from the cache"
    assert last["build transformer_tail"] != "from the cache"


def test_weights_as_constants(cache_dir: Path, tmp_path: Path) -> None:
    graph = part_graph("tiny", "transformer_tail", "bf16")
    made = builder(cache_dir, ONE, precision="bf16", weights="constant")
    rng = np.random.default_rng(0)

    def weights() -> dict[str, np.ndarray]:
        return {
            t.name: (rng.integers(0, 2**14, tuple(t.dims))).astype(np.uint16)
            for t in injected(graph.model)
        }

    one = weights()
    first = made.build(graph, "bf16", one, tmp_path / "a", Job())
    again = made.build(graph, "bf16", one, tmp_path / "b", Job())
    other = made.build(graph, "bf16", weights(), tmp_path / "c", Job())
    assert first.weights == "constant"
    assert first.sha256 == again.sha256 != other.sha256
    report = inspect_engine(tmp_path / "a" / first.file)
    assert report["weight_inputs"] == ()
    assert [t["name"] for t in report["inputs"]] == [s.name for s in graph.component.inputs]


@pytest.mark.parametrize(
    ("precision", "gemms"),
    [
        # gates and projections of one value are one GEMM
        ("bf16", {("bf16", "bf16"): 40}),
        # all 28 linears of each bucket multiply codes, some in one GEMM; the six gates stay
        ("fp8", {("fp8_e4m3", "fp8_e4m3"): 40, ("bf16", "bf16"): 12}),
        # no weight-only GEMM: kernels before it decode the weights at every call
        ("int4-wo", {("bf16", "bf16"): 40}),
    ],
)
def test_a_block_that_holds_its_weights(
    precision: str, gemms: dict[tuple[str, str], int], cache_dir: Path, tmp_path: Path
) -> None:
    graph = part_graph("tiny", "transformer_block", precision)
    weights = random_weights(graph)
    made = builder(cache_dir, TWO, precision=precision, target=("sm89",), weights="constant")
    entry = made.build(holding_weights(graph), precision, weights, tmp_path, Job(), layer=3)
    assert entry.file.endswith("-layer03.engine")
    report = inspect_engine(tmp_path / entry.file)
    assert report["weight_inputs"] == ()
    assert report["attentions"] == report["kernels"]["fused_attentions"] == 12
    assert report["findings"] == []
    assert gemm_operands((tmp_path / entry.file).read_bytes()) == gemms
    # the weights are inside as they were given, once
    assert 0 < entry.bytes - sum(a.nbytes for a in weights.values()) < 20e6


@pytest.fixture
def request_of_tail(tmp_path: Path) -> EngineRequest:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(part_graph("tiny", "transformer_tail", "bf16").model.SerializeToString())
    return EngineRequest(backend="tensorrt-rtx", graph=str(graph), output=str(tmp_path / "engine"))


def test_what_the_library_refuses_is_not_built_otherwise(request_of_tail: EngineRequest) -> None:
    """A refused target would silently become the GPU of this machine."""
    config = SimpleNamespace(
        set_compute_capability=lambda capability, index: False,
        set_timing_cache=lambda cache, ignore: False,
        create_timing_cache=lambda data: None,
    )
    profile = SimpleNamespace(set_shape=refuse_shape)
    network = SimpleNamespace(num_inputs=1, get_input=lambda i: SimpleNamespace(name="x"))
    made: Any = SimpleNamespace(
        create_builder_config=lambda: config, create_optimization_profile=lambda: profile
    )
    trt: Any = SimpleNamespace(
        __version__="1.7.1", ComputeCapability=SimpleNamespace(SM89=1, SM120=2)
    )
    bare = dataclasses.replace(
        request_of_tail, targets=(), profiles=(), optimization_level=None, timing_cache=None
    )
    for changes, said in (
        ({"targets": ("sm89",)}, "refuses the target sm89"),
        ({"timing_cache": "no.cache"}, "refuses the timing cache no.cache: it is of another GPU"),
        (
            {"profiles": ({"x": ((1,), (2,), (3,))},)},
            "refuses the sizes .* of x: no",
        ),
    ):
        with pytest.raises(EngineError, match=said):
            _configure(trt, made, network, dataclasses.replace(bare, **changes))


def refuse_shape(*_: object) -> None:
    raise ValueError("no")


def test_a_refused_graph_gives_the_librarys_words(request_of_tail: EngineRequest) -> None:
    with pytest.raises(EngineError, match=r"building toy: TensorRT-RTX 1\.\S+ refuses the graph"):
        run_build("toy", request_of_tail)  # weights that are nowhere
    assert not Path(request_of_tail.output).exists()


def test_a_crash_of_the_builder_is_one_sentence(
    request_of_tail: EngineRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = "import os, sys; sys.stderr.write('plugin: no such tactic\\n'); os.abort()"
    monkeypatch.setattr(process, "WORKER", (sys.executable, "-c", crash))
    with pytest.raises(EngineError) as error:
        run_build("toy", request_of_tail)
    assert str(error.value) == (
        "building toy: the TensorRT-RTX builder was ended by SIGABRT: plugin: no such tactic"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends at its next step")
def test_a_builder_ends_with_the_process_that_started_it(
    request_of_tail: EngineRequest, tmp_path: Path
) -> None:
    """Killed builds leave no process that holds the GPU; this one is kept busy by a plugin."""
    said = tmp_path / "pid"
    (tmp_path / "sleepy.py").write_text(
        f"import os, pathlib, time\npathlib.Path({str(said)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(60)\n",
        encoding="utf-8",
    )
    request = dataclasses.replace(request_of_tail, plugin_modules=("sleepy",))
    code = (
        "import json, sys\nfrom ltx2rt_export.engines.builder import EngineRequest\n"
        "from ltx2rt_export.engines.process import run_build\n"
        "run_build('toy', EngineRequest(**json.loads(sys.argv[1])))"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    command = (sys.executable, "-c", code, json.dumps(dataclasses.asdict(request)))
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}) as build:
        assert wait_for(lambda: said.exists() and said.read_text() != "")
        worker = Path("/proc") / said.read_text() / "cmdline"
        assert b"engines.worker" in worker.read_bytes()
        build.kill()
    # gone, or waiting for whoever inherited it
    assert wait_for(lambda: not worker.exists() or worker.read_bytes() == b"")


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_an_error_of_the_system(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_full_disk(component: str, request: EngineRequest, on_step: object) -> object:
        Path(request.output).symlink_to("/dev/full")
        return run_build(component, request)

    monkeypatch.setattr(build_module, "run_build", on_full_disk)
    made = builder(tmp_path / "cache", ONE, precision="bf16")
    with pytest.raises(OSError, match="No space left") as error:
        made.build(part_graph("tiny", "transformer_tail", "bf16"), "bf16", None, tmp_path, Job())
    assert error.value.errno == errno.ENOSPC
    assert list((tmp_path / "cache/engines").iterdir()) == []
    assert Path("/dev/full").exists()
