"""Goldens of the diffusion transformer, its RoPE tables and its timestep features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ltx2rt.components.transformer import ModalityInput, Perturbations, Transformer
from ltx2rt.engine import Engine, EngineBase, EngineSpec
from ltx2rt.latents.rope import rope_tables
from ltx2rt.names import TRANSFORMER_STACK
from ltx2rt_export.component import Component
from ltx2rt_export.modules.adaln import sinusoid_frequencies, timestep_features
from ltx2rt_export.modules.attention import apply_interleaved_rope, apply_split_rope
from ltx2rt_export.modules.transformer import (
    transformer_block,
    transformer_head,
    transformer_tail,
)
from ltx2rt_export.reference import TorchEngine, component_stack
from tests.parity.golden import Case, Runner, Skip, handles

PREFIX = "model.diffusion_model."
SUB_LAYERS = (
    "attn1",
    "attn2",
    "ff",
    "audio_attn1",
    "audio_attn2",
    "audio_ff",
    "audio_to_video_attn",
    "video_to_audio_attn",
)
#: names of skipped attentions in the goldens
KIND = {
    "video_self": "video_self",
    "audio_self": "audio_self",
    "a2v": "audio_to_video",
    "v2a": "video_to_audio",
}
Arrays = dict[str, np.ndarray]


@handles("transformer")
def transformer(case: Case, run: Runner) -> Arrays:
    """Velocities, denoised tokens and, if asked for, intermediate tensors of one forward pass."""
    bfloat16 = case.tolerance_class == "info"
    internals = any(name.startswith("block") for name in case.outputs)
    if run.backend != "torch":
        if bfloat16:
            raise Skip("ONNX Runtime has no bfloat16 kernels on CPU")
        if internals:
            raise Skip("intermediate tensors are no outputs of the graphs; the torch run has them")
    results = [
        forward(case, run, modalities, bfloat16=bfloat16, internals=internals)
        for modalities in engine_sets(case)
    ]
    for other in results[1:]:  # a stand-in token must not change the stream beside it
        for name, array in results[0].items():
            np.testing.assert_allclose(other[name], array, rtol=1e-4, atol=1e-4, err_msg=name)
    return results[-1]


def engine_sets(case: Case) -> tuple[str, ...]:
    """A case without one stream runs on both engine sets: with a stand-in token, and without."""
    streams = {name.split(".")[0] for name in case.inputs}
    return ("av",) if len(streams) == 2 else ("av", *streams)


def forward(case: Case, run: Runner, modalities: str, *, bfloat16: bool, internals: bool) -> Arrays:
    """One forward pass on the engines of `modalities`."""
    tensors = run.tensors(case.checkpoint, PREFIX)
    config = run.config(case.checkpoint).get("transformer", {})
    head, block, tail = (
        make(config, tensors, modalities)
        for make in (transformer_head, transformer_block, transformer_tail)
    )
    engines = {
        c.name: Float32Timesteps(c) if bfloat16 else run.engine(c) for c in (head, block, tail)
    }
    recorded: list[tuple[str, Arrays, Arrays]] = []

    def watched(part: Component) -> Engine:
        return _Recorder(engines[part.name], recorded) if internals else engines[part.name]

    stack = component_stack(TRANSFORMER_STACK, (head, block, tail), watched, run.layers)
    model = Transformer(stack, block.options)
    streams = {name: modality(case, name) for name in ("video", "audio")}
    if internals:
        torch_block = engines[block.name]
        assert isinstance(torch_block, TorchEngine)
        with sub_layer_outputs(torch_block.module) as seen:
            model(streams["video"], streams["audio"])
        return intermediate_tensors(recorded, seen)
    skipped = perturbations(case.params, model.num_layers)
    velocities = model(streams["video"], streams["audio"], skipped)
    out: Arrays = {}
    for name, velocity in zip(("video", "audio"), velocities, strict=True):
        stream = streams[name]
        if velocity is not None and stream is not None:
            out[f"{name}.velocity"] = velocity
            out[f"{name}.denoised"] = stream.latent - velocity * stream.timesteps
    return {name: array for name, array in out.items() if name in case.outputs}


def modality(case: Case, name: str) -> ModalityInput | None:
    """One stream's inputs, None if the case has none."""
    fields = {k[len(name) + 1 :]: v for k, v in case.inputs.items() if k.startswith(f"{name}.")}
    if not fields:
        return None
    return ModalityInput(**fields, enabled=case.params.get(f"{name}.enabled", True))


def perturbations(params: Mapping[str, Any], num_layers: int) -> Perturbations:
    """Skipped attentions: `skip` lists blocks a kind, `passes` names the samples of a batch."""
    result = Perturbations()
    for kind, blocks in params.get("skip", {}).items():
        result = result.and_skip(KIND[kind], blocks)
    for sample, name in enumerate(params.get("passes", ())):
        for kind in params.get(f"{name}_skips", ()):
            blocks = params.get(f"{name}_blocks")
            result = result.and_skip(KIND[kind], blocks or range(num_layers), [sample])
    return result


class Float32Timesteps(TorchEngine):
    """bfloat16 module that still reads its timesteps as float32, as the official one does."""

    def __init__(self, component: Component) -> None:
        super().__init__(component, torch.bfloat16)
        self._wide = frozenset(component.options.get("float32_inputs", ()))

    @torch.no_grad()
    def __call__(self, tensors: Mapping[str, np.ndarray]) -> Arrays:
        wide = {n: torch.from_numpy(tensors[n].copy()) for n in self._wide}
        inputs = {s.name: self._tensor(tensors[s.name]) for s in self.spec.inputs} | wide
        if self._per_call:
            weights = {n: self._tensor(tensors[n]) for n in self._weights}
            out = torch.func.functional_call(self.module, weights, kwargs=inputs)
        else:
            out = self.module(**inputs)
        names = [s.name for s in self.spec.outputs]
        return {n: o.float().numpy() for n, o in zip(names, out, strict=True)}


class _Recorder(EngineBase):
    """Passes calls on and keeps what went in and out."""

    def __init__(self, engine: Any, calls: list[tuple[str, Arrays, Arrays]]) -> None:
        self._engine, self._calls = engine, calls

    @property
    def spec(self) -> EngineSpec:
        spec: EngineSpec = self._engine.spec
        return spec

    def __call__(self, tensors: Mapping[str, np.ndarray]) -> Arrays:
        out: Arrays = self._engine(tensors)
        names = {s.name for s in self.spec.inputs}
        taken = {n: a for n, a in tensors.items() if n in names}
        self._calls.append((self.spec.component, taken, out))
        return out


@contextmanager
def sub_layer_outputs(block: torch.nn.Module) -> Iterator[dict[str, list[np.ndarray]]]:
    """Collect the outputs of the block's sub-layers, one a call."""
    seen: dict[str, list[np.ndarray]] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _args, output: seen.setdefault(name, []).append(output.numpy())

    children = dict(block.named_children())
    handles = [children[n].register_forward_hook(keep(n)) for n in SUB_LAYERS if n in children]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def intermediate_tensors(
    calls: Sequence[tuple[str, Arrays, Arrays]], seen: Mapping[str, list[np.ndarray]]
) -> Arrays:
    """Everything an internals golden holds, from the engines' boundaries and the hooks."""
    head = next(out for name, _, out in calls if name == "transformer_head")
    blocks = [(taken, out) for name, taken, out in calls if name == "transformer_block"]
    taken = blocks[0][0]
    found: Arrays = {}
    for name in ("video", "audio"):
        index = taken[f"{name}_timestep_index"]
        per_token = {
            "adaln": head[f"{name}_adaln"],
            "embedded_timestep": head[f"{name}_embedded_timestep"],
            "cross_scale_shift": head[f"{name}_cross_adaln"],
        }
        for key, rows in per_token.items():
            found[f"{name}.{key}"] = rows.reshape(len(rows), -1)[index]
        found[f"{name}.x0"] = head[f"{name}_hidden"]
        found[f"{name}.context"] = head[f"{name}_text_context"]
        found[f"{name}.cross_gate"] = head[f"{name}_cross_gate"]
        if f"{name}_prompt_adaln" in head:
            rows = head[f"{name}_prompt_adaln"]
            found[f"{name}.prompt_adaln"] = rows.reshape(len(rows), 1, -1)
        for key in ("rope_cos", "rope_sin", "cross_rope_cos", "cross_rope_sin"):
            found[f"{name}.{key}"] = taken[f"{name}_{key}"]
        for i, (_, out) in enumerate(blocks):
            found[f"block{i}.{name}"] = out[f"{name}_hidden_out"]
    for name, outputs in seen.items():
        for i, output in enumerate(outputs):
            found[f"block{i}.{name}"] = output
    return found


@handles("timestep_embedding")
def timestep_embedding(case: Case, _run: Runner) -> Arrays:
    """256 features of timesteps in 0..1000."""
    steps = torch.from_numpy(case.inputs["timestep"].copy())
    return {"embedding": timestep_features(steps, sinusoid_frequencies()).numpy()}


@handles("rope")
def rope(case: Case, _run: Runner) -> Arrays:
    """Tables at published sizes, thinned out as the case says, and their application."""
    positions = {
        "video": case.inputs["video.positions"],
        "audio": case.inputs["audio.positions"],
        "video_cross": case.inputs["video.positions"][:, :1],
        "connector": case.inputs["connector.index"],
    }
    found: Arrays = {}
    for output in case.outputs:
        use, *rest = output.split(".")
        if use == "apply":
            found[output] = _applied(case, rest[0])
            continue
        precision, layout, part = rest
        facts = case.params[use]
        tables = rope_tables(
            positions[use],
            width=facts["dim"],
            heads=facts["heads"],
            max_pos=facts["max_pos"],
            rope_type=layout,
            precision="float64" if precision == "f64" else "float32",
        )
        table = tables[("cos", "sin").index(part)]
        found[output] = _thinned(table, facts, layout, case.outputs[output].shape[1])
    return found


def _thinned(table: np.ndarray, facts: Mapping[str, Any], layout: str, heads: int) -> np.ndarray:
    if layout == "interleaved":
        return table[..., _selection(facts["interleaved_columns"])]
    return table[:, _selection(facts.get("kept_heads", f"::{table.shape[1] // heads}"))]


def _selection(kept: str | list[int]) -> slice | list[int]:
    return slice(None, None, int(kept.lstrip(":"))) if isinstance(kept, str) else kept


def _applied(case: Case, layout: str) -> np.ndarray:
    facts, x = case.params["apply"], torch.from_numpy(case.inputs["x"].copy())
    tokens = x.shape[1]
    cos, sin = rope_tables(
        case.inputs["video.positions"][:, :, :tokens],
        width=facts["dim"],
        heads=facts["heads"],
        max_pos=case.params["video"]["max_pos"],
        rope_type=layout,
    )
    tables = torch.from_numpy(cos), torch.from_numpy(sin)
    if layout == "interleaved":
        return apply_interleaved_rope(x, tables).numpy()
    heads = x.unflatten(-1, (facts["heads"], -1)).transpose(1, 2)
    return apply_split_rope(heads, tables).transpose(1, 2).flatten(-2).numpy()
