"""Benchmark cases: each returns the numbers of one record. Names say what varies."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.timing import REPEATS, percentiles, timed_processes
from benchmarks.tiny_model import demo_bundle


def cli_help() -> dict[str, Any]:
    """`ltx2rt --help`, whole process."""
    return timed_processes([sys.executable, "-m", "ltx2rt.cli", "--help"])


def generate_help() -> dict[str, Any]:
    """`ltx2rt generate --help`, whole process."""
    return timed_processes([sys.executable, "-m", "ltx2rt.cli", "generate", "--help"])


def list_pipelines() -> dict[str, Any]:
    """`ltx2rt pipelines`, whole process."""
    return timed_processes([sys.executable, "-m", "ltx2rt.cli", "pipelines"])


def generate_clip() -> dict[str, Any]:
    """A distilled clip of the tiny demo bundle, whole process: loading and encoding included."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = demo_bundle(Path(folder))
        size = ("--height", "256", "--width", "384", "--num-frames", "49")
        command = [sys.executable, "-m", "ltx2rt.cli", "generate", str(bundle), "--quiet"]
        command += ["--prompt", "A quiet lake.", *size, "-o", str(Path(folder) / "clip.mp4")]
        return timed_processes(command)


def open_bundle() -> dict[str, Any]:
    """`import ltx2rt` and opening the tiny demo bundle, whole process."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = demo_bundle(Path(folder))
        script = f"import ltx2rt; ltx2rt.open_bundle({str(bundle)!r})"
        return timed_processes([sys.executable, "-c", script])


def open_headers() -> dict[str, Any]:
    """Open the files of LTX-2.3 at real size (their data are holes): headers read and matched."""
    from benchmarks.sparse_model import write_sparse_model
    from ltx2rt_export.checkpoint import open_model

    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        paths = write_sparse_model(Path(folder), "2.3")
        for _ in range(REPEATS):
            start = time.perf_counter()
            open_model(**paths)
            seconds.append(time.perf_counter() - start)
    return percentiles(seconds)


def export_ltx23_transformer() -> dict[str, Any]:
    """Real-size LTX-2.3 head, block and tail to ONNX from `meta`, in a process of its own."""
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks.cases", "export"],
        check=True,
        capture_output=True,
        text=True,
    )
    result: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return result


def _export_here() -> dict[str, Any]:
    start = time.perf_counter()
    from benchmarks.real_size import LTX23, transformer_components
    from ltx2rt_export.onnx import export_component

    sizes = {}
    for component in transformer_components(LTX23):
        begin = time.perf_counter()
        graph = export_component(component).model.SerializeToString()
        sizes[component.name] = {
            "graph_bytes": len(graph),
            "seconds": time.perf_counter() - begin,
        }
    return {
        "median_s": time.perf_counter() - start,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "graph_bytes": sum(s["graph_bytes"] for s in sizes.values()),
        "components": sizes,
    }


def tiny_distilled() -> dict[str, Any]:
    """The tiny distilled pipeline, ONNX Runtime against the PyTorch reference, interleaved."""
    from benchmarks.tiny_pipeline import compare

    with tempfile.TemporaryDirectory() as folder:
        return compare(demo_bundle(Path(folder)))


def precision_quality() -> dict[str, Any]:
    """What every precision loses; `median_s` is the time of the whole comparison."""
    from benchmarks.quality import quality

    return quality()


def eighth_decoder() -> dict[str, Any]:
    """LTX-2.3's video decoder at 1/8 of its width, CPU seconds."""
    from benchmarks.video_decoder import compare

    return compare(8)


def quarter_decoder() -> dict[str, Any]:
    """LTX-2.3's video decoder at 1/4 of its width, CPU seconds."""
    from benchmarks.video_decoder import compare

    return compare(4)


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "cli-help": cli_help,
    "cli-generate-help": generate_help,
    "cli-pipelines": list_pipelines,
    "open-bundle": open_bundle,
    "open-ltx23-headers": open_headers,
    "export-ltx23-transformer": export_ltx23_transformer,
    "tiny-distilled-256x384-25f": tiny_distilled,
    "generate-256x384-49f": generate_clip,
    "video-decoder-eighth": eighth_decoder,
    "video-decoder-quarter": quarter_decoder,
    "quality": precision_quality,
}

if __name__ == "__main__":
    print(json.dumps(_export_here()))
