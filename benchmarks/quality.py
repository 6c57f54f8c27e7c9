"""What every precision loses: one block, eight blocks in a row, a distilled clip. No speed.

`python -m benchmarks.quality [PRECISION ...]` appends a record of these, or of all, to
`benchmarks/results/quality.jsonl`. Each precision is emulated in PyTorch with the arithmetic of its
graph (`quantize/emulate.py`, which tests compare with the graphs) and compared with float32; the
row `bf16` is what PyTorch itself loses in bfloat16. Weights are random and bfloat16 values: the
numbers rank precisions, they are not those of a trained model.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hardware import environment
from benchmarks.real_size import LTX23, transformer_components
from benchmarks.tiny_model import demo_bundle
from ltx2rt.backends.stack import Stack
from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.bundle.loader import Loader
from ltx2rt.config import GenerationConfig, RuntimeConfig
from ltx2rt.engine import Array, Engine
from ltx2rt.lora.files import Lora
from ltx2rt.names import TRANSFORMER, TRANSFORMER_BLOCKS, TRANSFORMER_STACK, StackNames
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.weights.floats import round_bfloat16
from ltx2rt.weights.precision import PRECISIONS, float_precision
from ltx2rt.weights.safetensors import convert
from ltx2rt_export.bundle import inputs_in, make_components, open_inputs
from ltx2rt_export.component import Component
from ltx2rt_export.example_inputs import example_inputs
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.onnx import export_component
from ltx2rt_export.quantize.bind import bind_inputs, bind_weights
from ltx2rt_export.quantize.component_graph import rewrite_graph
from ltx2rt_export.quantize.emulate import EmulatedEngine, activation_maxima
from ltx2rt_export.quantize.floats import substitute_float
from ltx2rt_export.quantize.linears import weight_inputs
from ltx2rt_export.quantize.rewrites import REWRITES, VIDEO_LINEARS
from ltx2rt_export.quantize.stored_floats import store_weights
from ltx2rt_export.reference import component_stack, load_weights, official_layers

RESULTS = Path(__file__).parent / "results" / "quality.jsonl"

REFERENCE = float_precision("float32").name

#: every precision but the reference itself
ROWS = tuple(name for name in PRECISIONS if name != REFERENCE)

#: LTX-2.3's block at a quarter of its width
WIDTH, AUDIO_WIDTH, HEADS, BLOCKS = 1024, 512, 16, 8
SIZES = {"B": 1, "Tv": 96, "Ta": 24, "Uv": 2, "Ua": 2, "S": 32}

CLIP = GenerationConfig(
    prompt="A quiet lake.", seed=3, height=64, width=64, num_frames=9, tiling="none"
)


def quality(names: Sequence[str] = ROWS) -> dict[str, Any]:
    """Precision -> where -> relative RMS error and cosine, the worse of video and audio."""
    start = time.perf_counter()
    rows: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name, found in chained_blocks(names).items():
        rows[name] |= found
    for name, error in distilled_clips(names).items():
        rows[name]["clip"] = error
    return {"rows": rows, "median_s": time.perf_counter() - start}


def compare(got: Sequence[Array], want: Sequence[Array]) -> dict[str, float]:
    """The larger relative RMS error and the smaller cosine."""
    errors, cosines = [], []
    for a, b in zip(got, want, strict=True):
        x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        errors.append(float(np.linalg.norm(x - y) / np.linalg.norm(y)))
        cosines.append(float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y))))
    return {"rel_rms": max(errors), "cosine": min(cosines)}


def _config() -> Any:
    video, audio = LTX23.streams
    sizes = {"video": (video, WIDTH), "audio": (audio, AUDIO_WIDTH)}
    streams = tuple(
        dataclasses.replace(s, width=w, head_dim=w // HEADS, context_dim=w)
        for s, w in sizes.values()
    )
    return dataclasses.replace(
        LTX23, streams=streams, heads=HEADS, cross_head_dim=AUDIO_WIDTH // HEADS, num_layers=BLOCKS
    )


def random_layer(component: Component, rng: np.random.Generator) -> dict[str, Array]:
    """Weights of one block: linears keep the scale of what they read; bfloat16 values."""
    weights = {}
    for name, tensor in component.module.state_dict().items():
        values = rng.standard_normal(tuple(tensor.shape)).astype(np.float32)
        if name.endswith("norm.weight"):
            values = 1 + np.float32(0.1) * values
        elif tensor.dim() == 2 and name.endswith(".weight"):
            values *= np.float32(tensor.shape[1] ** -0.5)
        else:
            values *= np.float32(0.1)  # biases and modulation tables
        weights[name] = round_bfloat16(values)
    return weights


def block_inputs(component: Component, rng: np.random.Generator) -> dict[str, Array]:
    """Inputs as in mid-model: small modulation, gates near one, one channel in a hundred large."""
    inputs = example_inputs(component, rng)
    for name, values in inputs.items():
        if name.endswith(("_adaln", "_gate")):
            inputs[name] = values * np.float32(0.2)
        if name.endswith("_hidden"):
            values[..., :: values.shape[-1] // 10] *= 10
    return inputs


def chained_blocks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Errors after one block, and after `BLOCKS` blocks with weights of their own."""
    made = transformer_components(_config())[1]
    component = dataclasses.replace(made, trace=SIZES)
    rng = np.random.default_rng(0)
    layers = [random_layer(component, rng) for _ in range(BLOCKS)]
    inputs = block_inputs(component, rng)
    half = export_component(component, "bfloat16")
    states: list[list[Array]] = []
    maxima = []
    for values in _chain(in_precision(half, REFERENCE), REFERENCE, layers, inputs, [{}] * BLOCKS):
        previous = states[-1] if states else [inputs[n] for n in ("video_hidden", "audio_hidden")]
        hidden = dict(zip(("video_hidden", "audio_hidden"), previous, strict=True))
        maxima.append(activation_maxima(component, [{**inputs, **hidden, **layers[len(states)]}]))
        states.append(values)
    rows = {}
    for name in names:
        graph = in_precision(half, name)
        found = list(_chain(graph, name, layers, inputs, maxima))
        rows[name] = {
            "block": compare(found[0], states[0]),
            f"{BLOCKS} blocks": compare(found[-1], states[-1]),
        }
    return rows


def in_precision(half: ExportedGraph, precision: str) -> ExportedGraph:
    """A graph that was traced in bfloat16, in a precision."""
    row = PRECISIONS[precision]
    graph = half if half.dtype == row.dtype else substitute_float(half, row.dtype)
    held = row.stored is not None and graph.component.name in TRANSFORMER_BLOCKS
    return store_weights(graph, row.stored) if held else rewrite_graph(graph, precision)


def _chain(
    graph: ExportedGraph,
    precision: str,
    layers: Sequence[Mapping[str, Array]],
    inputs: Mapping[str, Array],
    maxima: Sequence[Mapping[str, float]],
) -> Any:
    """Hidden states after every block, float32."""
    engine = EmulatedEngine(graph, precision)
    feeds = bind_inputs(graph, inputs)
    for weights, largest in zip(layers, maxima, strict=True):
        scales = _scales(graph, precision, largest)
        out = engine({**feeds, **bind_weights(graph, precision, weights, scales)})
        feeds |= {n.removesuffix("_out"): a for n, a in out.items()}
        yield [convert(out[s.name], s.dtype, "float32", s.name) for s in engine.spec.outputs]


def _scales(graph: ExportedGraph, precision: str, maxima: Mapping[str, float]) -> dict[str, float]:
    """Static activation scales, from what the float32 model read here; {} where none are used."""
    rewrite = REWRITES.get(precision)
    if rewrite is None or rewrite.static_range is None:
        return {}
    wanted = weight_inputs(graph)
    unit = rewrite.static_range
    return {m: v / unit for m, v in maxima.items() if f"{m}.input_scale" in wanted}


class EmulatedSource:
    """A bundle whose transformer is emulated in a precision; the rest stays in float32.

    Args:
        graphs: head, block and tail in bfloat16.
    """

    def __init__(self, bundle: Bundle, graphs: Mapping[str, ExportedGraph], precision: str) -> None:
        self._bundle, self.model, self.bundle_id = bundle, bundle.model, precision
        self._loader = Loader(bundle)
        self._precision = precision
        self._graphs = {n: in_precision(g, precision) for n, g in graphs.items()}

    @property
    def text_encoder_id(self) -> str:
        return self._bundle.text_encoder_id

    def has(self, *names: str) -> bool:
        return self._bundle.has(*names)

    def context_widths(self) -> Mapping[str, int]:
        return self._bundle.context_widths()

    def options(self, name: str) -> Mapping[str, Any]:
        return self._bundle.options(name)

    def check_loras(self, loras: Sequence[Lora]) -> None:
        self._loader.check_loras(loras)

    def text_loras(self, loras: Sequence[Lora]) -> tuple[Lora, ...]:
        return self._loader.text_loras(loras)

    def tokenizer_path(self) -> Path:
        return self._bundle.tokenizer_path()

    def engine(self, name: str, runtime: RuntimeConfig) -> Engine:
        return self._loader.engine(name, runtime)

    def stack(self, names: StackNames, runtime: RuntimeConfig, loras: Sequence[Lora] = ()) -> Stack:
        if names != TRANSFORMER_STACK:
            return self._loader.stack(names, runtime, loras)
        parts = [self._graphs[name].component for name in TRANSFORMER]
        return component_stack(names, parts, self._emulated, self._layers)

    def _emulated(self, part: Component) -> Engine:
        graph = self._graphs[part.name]
        weights: dict[str, Array] = {}
        if part.weight_binding == "initializer":
            values = load_weights(part.weights, frozenset())
            for name, array in values.items():
                made = convert(array, "float32", graph.dtype, name)
                weights[name] = made.T if name in graph.transposed else made
        return EmulatedEngine(graph, self._precision, weights)

    def _layers(self, part: Component) -> list[dict[str, Array]]:
        graph, precision = self._graphs[part.name], self._precision
        return [bind_weights(graph, precision, weights) for weights in official_layers(part)]


def distilled_clips(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Errors of the final latents of the demo model's distilled clip (two stages, eleven steps),
    every block quantised.
    """
    rows = {}
    runtime = RuntimeConfig(residency="resident")
    with tempfile.TemporaryDirectory() as folder:
        bundle = open_bundle(demo_bundle(Path(folder)))
        files = open_inputs(inputs_in(bundle.manifest.build, bundle.folder))
        graphs = {
            c.name: export_component(c, "bfloat16")
            for c in make_components(files, (), Path(folder))
            if c.name in TRANSFORMER
        }
        with DistilledPipeline(bundle, runtime) as pipe:
            clip = pipe(CLIP)
            want = [clip.video_latent, clip.audio_latent]
        for name in names:
            if name in REWRITES and REWRITES[name].static:
                continue  # the demo's files hold no activation scales
            with DistilledPipeline(EmulatedSource(bundle, graphs, name), runtime) as pipe:
                clip = pipe(CLIP)
            rows[name] = compare([clip.video_latent, clip.audio_latent], want)
    return rows


def table() -> list[str]:
    """The newest row of every precision as lines of Markdown; empty if nothing was measured."""
    if not RESULTS.exists():
        return []
    rows: dict[str, Any] = {}
    commits: dict[str, list[str]] = {}
    for record in map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines()):
        where = record["environment"]
        for name, row in record["rows"].items():
            rows[name] = row, f"{where['commit']}, {where['date']}"
    for name in ROWS:
        if name in rows:
            commits.setdefault(rows[name][1], []).append(name)
    places = ("block", f"{BLOCKS} blocks", "clip")
    video = " and ".join(f"`{n}`" for n, r in REWRITES.items() if r.linears == VIDEO_LINEARS)
    lines = [
        "## What every precision loses",
        "",
        "Relative RMS error and cosine against float32, the worse of video and audio, random "
        f"weights; {BLOCKS} blocks of width {WIDTH} and {AUDIO_WIDTH}, and the demo model's "
        f"distilled clip, every block quantised. `{float_precision('bfloat16').name}` is what "
        f"PyTorch itself loses; {video} changes the 12 linears of the video stream, the others all "
        "28. `python -m benchmarks.quality`; "
        + "; ".join(f"{', '.join(names)}: {commit}" for commit, names in commits.items())
        + ".",
        "",
        f"| precision | one block | {BLOCKS} blocks | distilled clip |",
        "|---|---|---|---|",
    ]
    for name in ROWS:
        row = rows[name][0] if name in rows else {}
        cells = [
            f"{row[p]['rel_rms']:.2%}, {row[p]['cosine']:.5f}" if p in row else "-" for p in places
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    names = tuple(sys.argv[1:]) or ROWS
    if unknown := set(names) - set(ROWS):
        raise SystemExit(f"unknown: {', '.join(unknown)}; allowed: {', '.join(ROWS)}")
    record = {"case": "quality", **quality(names), "environment": environment()}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, sort_keys=True, default=str) + "\n")
    print("\n".join(table()))
    print(json.dumps(record, sort_keys=True, default=str))


if __name__ == "__main__":
    main()
