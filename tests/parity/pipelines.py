"""Pipeline cases of a golden directory: from prompt and seed to latents, frames and waveform."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ltx2rt.components.diffusion_stage import StageTrace
from ltx2rt.config import GenerationConfig, ImageCondition, RuntimeConfig
from ltx2rt.engine import Array, Engine
from ltx2rt.errors import Ltx2rtError
from ltx2rt.manifest import ModelInfo
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.safetensors import SafetensorsFile
from ltx2rt_export.bundle import model_info
from ltx2rt_export.catalog import COMPONENTS
from ltx2rt_export.checkpoint import ModelFiles, open_model
from ltx2rt_export.component import Component
from ltx2rt_export.kinds import detect_kind
from ltx2rt_export.version import detect_version, read_config
from tests.parity.golden import Result, Runner, Skip, read_arrays
from tests.tolerances import (
    PIPELINE_FRAME_MAX,
    PIPELINE_FRAME_MEAN,
    PIPELINE_LATENT_REL_L2,
    PIPELINE_WAVEFORM_MAX,
    TOLERANCES,
)

#: call arguments of the golden files that a distilled run understands
KNOWN_ARGUMENTS = {
    "seed", "num_frames", "frame_rate", "height", "width", "images", "tiling_config", "ancestral",
}  # fmt: skip


def pipeline_files(root: Path) -> list[Path]:
    """The JSON of every pipeline case, in name order."""
    folder = root / "pipelines"
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return [p for p in files if p.with_suffix(".safetensors").exists()]


def run_pipeline_case(path: Path, runner: Runner) -> Result:
    """Replay one case and compare everything that it stores and we produce."""
    case = json.loads(path.read_text())
    try:
        got, audio_rate = _run_distilled(case, runner)
    except Skip as reason:
        return Result(path.stem, runner.backend, False, str(reason), None, None, "pipeline")
    want = read_arrays(SafetensorsFile(path.with_suffix(".safetensors")))
    contexts = path.with_name(f"contexts_{case['model']}_visible.safetensors")
    if contexts.exists():
        stored = read_arrays(SafetensorsFile(contexts))
        want.update({f"context.{m}": stored[f"p0.{m}"] for m in ("video", "audio")})
    failures, worst, relative = _compare(got, want)
    if audio_rate != case["audio_rate"]:
        failures.append(f"audio rate {audio_rate}, expected {case['audio_rate']}")
    detail = "; ".join(failures[:4])
    return Result(
        path.stem, runner.backend, not failures, None, worst, relative, "pipeline", detail
    )


def _run_distilled(case: Mapping[str, Any], runner: Runner) -> tuple[dict[str, Array], int]:
    if case["pipeline"] != "DistilledPipeline":
        raise Skip(f"pipeline {case['pipeline']} is not supported yet")
    if case.get("native_bf16"):
        raise Skip("bfloat16 arithmetic is informative, not a gate; it is not run on a CPU")
    call = dict(case["call"])
    unknown = sorted(k for k in set(call) - KNOWN_ARGUMENTS if call[k])
    if unknown:
        raise Skip(f"option {', '.join(unknown)} of {case['pipeline']} is not supported yet")
    source = ComponentSource(find_model(case["model"], runner), runner)
    if call.get("ancestral"):
        source.model = dataclasses.replace(source.model, distilled_sampler="euler_ancestral")
    inputs = runner.root / "pipelines" / "inputs"
    config = GenerationConfig(
        prompt=case["prompts"]["p0"],
        images=tuple(
            ImageCondition(path=inputs / name, frame=frame, strength=strength, crf=crf)
            for name, frame, strength, crf in call["images"]
        ),
        tiling="none",
        **{k: call[k] for k in ("seed", "num_frames", "frame_rate", "height", "width")},
    )
    trace = StageTrace()
    clip = DistilledPipeline(source, RuntimeConfig(residency="resident"))(config, trace=trace)
    frames = np.concatenate(list(clip.float_frames()))
    got = {k.replace("stage_", "stage"): v for k, v in trace.tensors.items()}
    for name, latent in clip.latents.items():
        if name.startswith("stage_"):
            got[f"{name.replace('stage_', 'stage')}.out"] = latent
    got["upsample1.out"] = clip.latents["upsampled.video"]
    got["video_u16"] = frames[case["saved_frames"]]
    got["audio.waveform"] = clip.audio
    return got, clip.audio_sampling_rate


def _compare(got: Mapping[str, Array], want: Mapping[str, Array]) -> tuple[list[str], float, float]:
    failures: list[str] = []
    worst = relative = 0.0
    compared = sorted(set(got) & set(want))
    for needed in ("stage1.video.out", "stage2.video.out", "video_u16"):
        if needed not in compared:
            failures.append(f"{needed} was not compared")
    for name in compared:
        target = want[name].astype(np.float64)
        if name == "video_u16":
            target = target / 65535
        value = got[name].astype(np.float64)
        if value.shape != target.shape:
            failures.append(f"{name}: shape {value.shape}, expected {target.shape}")
            continue
        difference = np.abs(value - target)
        rel = float(np.sqrt((difference**2).sum() / max((target**2).sum(), 1e-30)))
        worst, relative = max(worst, float(difference.max())), max(relative, rel)
        if not _within(name, difference, target, rel):
            failures.append(f"{name}: max {difference.max():.2g}, rel {rel:.2g}")
    return failures, worst, relative


def _within(name: str, difference: Array, target: Array, rel: float) -> bool:
    if name == "video_u16":
        return bool(
            difference.max() <= PIPELINE_FRAME_MAX and difference.mean() <= PIPELINE_FRAME_MEAN
        )
    if name == "audio.waveform":
        return bool(difference.max() <= PIPELINE_WAVEFORM_MAX)
    if name.endswith(".out") or name.endswith(".x0"):
        return rel <= PIPELINE_LATENT_REL_L2
    bound = TOLERANCES["deep" if name.startswith("context.") else "scalar"]
    return bool((difference <= bound.atol + bound.rtol * np.abs(target)).all())


class ComponentSource:
    """A `ModelSource` over components made from checkpoint files, on the runner's backend."""

    def __init__(self, files: ModelFiles, runner: Runner) -> None:
        self._files = files
        self._runner = runner
        self._components: dict[str, Component] = {}
        names = ("video_decoder", "audio_decoder", "vocoder")
        self.model: ModelInfo = model_info(files, {n: self._component(n).options for n in names})

    bundle_id = "golden"

    def _component(self, name: str) -> Component:
        if name not in self._components:
            row = next(r for r in COMPONENTS if r.name == name)
            self._components[name] = row.make(self._files)
        return self._components[name]

    def has(self, *names: str) -> bool:
        rows = [r for r in COMPONENTS if r.name in names]
        return all(self._files.has(role) for row in rows for role in row.roles)

    def options(self, name: str) -> Mapping[str, Any]:
        return self._component(name).options

    def engine(self, name: str, runtime: RuntimeConfig) -> Engine:
        return self._runner.engine(self._component(name))

    def layers(self, name: str) -> Sequence[Mapping[str, Array]]:
        return self._runner.layers(self._component(name))

    def tokenizer_path(self) -> Path:
        path = self._files.tokenizer_path
        if path is None:
            raise Skip("a tokenizer packed in the weights file is not supported yet")
        return path


def find_model(generation: str, runner: Runner) -> ModelFiles:
    """The directory's files of a generation ("2", "2.3", ...), recognised by their content."""
    checkpoints = [c for c in _checkpoints(runner) if c[1] == f"LTX-{generation}"]
    upsamplers = [c for c in _upsamplers(runner)]
    gemmas = [p for p in (runner.root / "checkpoints").iterdir() if (p / "config.json").exists()]
    if not (checkpoints and upsamplers and gemmas):
        raise Skip(f"no single-file checkpoint of LTX-{generation} with Gemma 3 in this directory")
    try:
        return open_model(checkpoints[0][0], gemma=gemmas[0], spatial_upsampler=upsamplers[0])
    except Ltx2rtError as error:
        raise Skip(f"cannot open the model: {error}") from error


def _files(runner: Runner) -> Iterator[SafetensorsFile]:
    for path in sorted((runner.root / "checkpoints").glob("*.safetensors*")):
        yield SafetensorsFile(runner.checkpoint(path.name.removesuffix(".xz")))


@cache
def _checkpoints(runner: Runner) -> list[tuple[Path, str]]:
    found = []
    for file in _files(runner):
        if detect_kind(file) == "checkpoint":
            prefix = "model.diffusion_model."
            transformer = {k[len(prefix) :]: e for k, e in file.items() if k.startswith(prefix)}
            found.append((file.path, detect_version(file, transformer, file).generation))
    return found


@cache
def _upsamplers(runner: Runner) -> list[Path]:
    return [
        f.path
        for f in _files(runner)
        if detect_kind(f) == "spatial_upsampler" and read_config(f).get("spatial_scale", 2.0) == 2.0
    ]
