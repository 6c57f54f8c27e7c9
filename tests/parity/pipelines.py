"""Pipeline cases of a golden directory: from prompt and seed to latents, frames and waveform."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ltx2rt.components.stage_trace import StageTrace
from ltx2rt.config import GenerationConfig, GuidanceConfig, ImageCondition, RuntimeConfig
from ltx2rt.engine import Array
from ltx2rt.latents.duration import AutoDuration
from ltx2rt.lora.files import Lora
from ltx2rt.pipelines.audio_to_video import AudioToVideoPipeline
from ltx2rt.pipelines.dfr import DFRPipeline
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.pipelines.dub_it import DubItPipeline
from ltx2rt.pipelines.hdr_ic_lora import HDRICLoraPipeline
from ltx2rt.pipelines.ic_lora import ICLoraPipeline
from ltx2rt.pipelines.keyframe import KeyframeInterpolationPipeline
from ltx2rt.pipelines.one_stage import OneStagePipeline
from ltx2rt.pipelines.retake import GuidedRetakePipeline, RetakePipeline
from ltx2rt.pipelines.text_to_audio import TextToAudioPipeline
from ltx2rt.pipelines.two_stages import TwoStagesPipeline
from ltx2rt.pipelines.two_stages_hq import TwoStagesHQPipeline
from ltx2rt.results.hdr_clip import HdrClip
from ltx2rt.sampling.guidance import GuiderParams
from ltx2rt.weights.safetensors import SafetensorsFile
from tests.parity.golden import Result, Runner, Skip, read_arrays
from tests.parity.pipeline_inputs import KNOWN_INPUTS, OWN_INPUTS, own_inputs, sound_fields
from tests.parity.pipeline_prompts import TEXT_ARGUMENTS, prompt_names, stored_contexts
from tests.parity.pipeline_source import ComponentSource, find_model
from tests.tolerances import (
    PIPELINE_FRAME_MAX,
    PIPELINE_FRAME_MEAN,
    PIPELINE_LATENT_REL_L2,
    PIPELINE_WAVEFORM_MAX,
    TOLERANCES,
)

#: official class -> ours
PIPELINES = {
    "A2VidPipelineTwoStage": AudioToVideoPipeline,
    "DFRPipeline": DFRPipeline,
    "DistilledPipeline": DistilledPipeline,
    "DubItPipeline": DubItPipeline,
    "HDRICLoraPipeline": HDRICLoraPipeline,
    "ICLoraPipeline": ICLoraPipeline,
    "KeyframeInterpolationPipeline": KeyframeInterpolationPipeline,
    "RetakePipeline": RetakePipeline,
    "T2AOneStagePipeline": TextToAudioPipeline,
    "TI2VidOneStagePipeline": OneStagePipeline,
    "TI2VidTwoStagesHQPipeline": TwoStagesHQPipeline,
    "TI2VidTwoStagesPipeline": TwoStagesPipeline,
}

#: call arguments of the golden files that we understand
KNOWN_ARGUMENTS = {
    "seed", "num_frames", "frame_rate", "height", "width", "images", "tiling_config", "ancestral",
    "video_guider_params", "audio_guider_params", "num_inference_steps", "distilled_strength",
    "s1", "s2", "generated_keyframes", "vae", *KNOWN_INPUTS, *TEXT_ARGUMENTS,
}  # fmt: skip


#: guidance of a modality that has none
NEUTRAL = dataclasses.asdict(GuiderParams())


def pipeline_files(root: Path) -> list[Path]:
    """The JSON of every pipeline case, in name order."""
    folder = root / "pipelines"
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return [p for p in files if p.with_suffix(".safetensors").exists()]


def run_pipeline_case(path: Path, runner: Runner) -> Result:
    """Replay one case and compare everything that it stores and we produce."""
    case = {**json.loads(path.read_text()), "name": path.stem}
    try:
        got, audio_rate = _run(case, runner)
    except Skip as reason:
        return Result(path.stem, runner.backend, False, str(reason), None, None, "pipeline")
    want = read_arrays(SafetensorsFile(path.with_suffix(".safetensors")))
    want.update(stored_contexts(path, case))
    failures, worst, relative = _compare(got, want)
    if audio_rate != case.get("audio_rate", audio_rate):
        failures.append(f"audio rate {audio_rate}, expected {case['audio_rate']}")
    if list(got["audio.waveform"].shape) != case.get("audio_shape", [2, 0]):
        failures.append(f"audio of shape {got['audio.waveform'].shape}")
    detail = "; ".join(failures[:4])
    return Result(
        path.stem, runner.backend, not failures, None, worst, relative, "pipeline", detail
    )


class OfficialRetakePipeline(GuidedRetakePipeline):
    """With the official noise on the stream that is kept."""

    kept_noise_scale = 1.0


def _run(case: Mapping[str, Any], runner: Runner) -> tuple[dict[str, Array], int]:
    pipeline = PIPELINES.get(case["pipeline"])
    if pipeline is None:
        raise Skip(f"pipeline {case['pipeline']} is not supported yet")
    if case.get("native_bf16"):
        raise Skip("bfloat16 arithmetic is informative, not a gate; it is not run on a CPU")
    call = dict(case["call"])
    if call.pop("distilled", True) is False:
        pipeline = OfficialRetakePipeline
    unknown = sorted(k for k in set(call) - KNOWN_ARGUMENTS if call[k])
    if unknown:
        raise Skip(f"option {', '.join(unknown)} of {case['pipeline']} is not supported yet")
    if isinstance(limits := call.get("num_frames"), dict):
        call["num_frames"] = AutoDuration(min_s=limits["min_seconds"], max_s=limits["max_seconds"])
    model = find_model(case["model"], runner, conv_decoder=call.get("vae") == "conv")
    source = ComponentSource(model, runner)
    if call.get("ancestral"):
        source.model = dataclasses.replace(source.model, distilled_sampler="euler_ancestral")
    inputs = runner.root / "pipelines" / "inputs"
    loras = [
        [Lora(path=str(runner.checkpoint(name)), strength=s) for name, s in stage["loras"]]
        for stage in case["stages"]
    ]
    if case["pipeline"] in OWN_INPUTS:
        loras = loras[:1]
    distilled = loras[-1].pop() if issubclass(pipeline, TwoStagesPipeline) else None
    config = GenerationConfig(
        prompt=case["prompts"][prompt_names(case)[0]],
        images=tuple(
            ImageCondition(path=inputs / name, frame=frame, strength=strength, crf=crf)
            for name, frame, strength, crf in call.get("images", ())
        ),
        tiling="none",
        generated_keyframes=call.get("generated_keyframes", 0),
        loras=tuple(loras[-1]),
        **sound_fields(case, runner),
        **{
            k: call[k] for k in ("seed", "num_frames", "frame_rate", "height", "width") if k in call
        },
    )
    trace = StageTrace()
    runtime = RuntimeConfig(residency="resident")
    guidance = _guidance(case, distilled) if pipeline.guided else None
    own = own_inputs(pipeline, case, runner)
    clip = pipeline(source, runtime)(config, guidance, own, trace=trace)
    if clip.audio_latent is not None:  # sound that a retake keeps: upstream decodes its latent
        clip.waveform = None
    # stages by number, whatever they are called
    stages = [k.removesuffix(".sigmas") for k in trace.tensors if k.endswith(".sigmas")]
    numbers = {stage: f"stage{i}" for i, stage in enumerate(stages, 1)}
    got = {}
    for key, value in trace.tensors.items():
        stage, _, rest = key.partition(".")
        got[f"{numbers.get(stage, stage)}.{rest}"] = value
    for key, latent in clip.latents.items():
        stage, _, part = key.partition(".")
        if stage in numbers:
            name = "video.keyframes" if part == "keyframes" else f"{part}.out"
            got[f"{numbers[stage]}.{name}"] = latent
    if clip.audio_latent is not None:
        got["decode.audio_latent"] = clip.audio_latent
    if clip.video_latent is not None:
        got["decode.video_latent"] = clip.video_latent
        is_hdr = isinstance(clip, HdrClip)
        frames = np.concatenate(list(clip.exr_frames() if is_hdr else clip.float_frames()))
        saved = frames[case["saved_frames"]]
        got |= {"video_linear_s2": saved[:, ::2, ::2]} if is_hdr else {"video_u16": saved}
    got["audio.waveform"] = clip.audio
    return got, clip.audio_sampling_rate


def _guidance(case: Mapping[str, Any], distilled: Lora | None) -> GuidanceConfig:
    call = case["call"]
    _, negative = prompt_names(case)
    video, audio = (
        GuiderParams(**{**params, "stg_blocks": tuple(params["stg_blocks"])})
        for params in (call.get(f"{m}_guider_params", NEUTRAL) for m in ("video", "audio"))
    )
    return GuidanceConfig(
        negative_prompt=case["prompts"][negative] if negative else "",
        num_inference_steps=call["num_inference_steps"],
        video=video,
        audio=audio,
        distilled_lora=distilled,
        distilled_strengths=(call["s1"], call["s2"]) if "s1" in call else None,
    )


def _compare(got: Mapping[str, Array], want: Mapping[str, Array]) -> tuple[list[str], float, float]:
    failures: list[str] = []
    worst = relative = 0.0
    compared = sorted(set(got) & set(want))
    inside = {
        n
        for n in want
        if re.search(r"^stage\d.*(sigmas|noise|x0|mask|out)$|\.eval\d+\.|_u16$|_linear", n)
    }
    failures += [f"{name} was not compared" for name in sorted(inside - set(compared))]
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
    if name == "video_linear_s2":  # light is exponential in what the decoder gives
        return rel <= PIPELINE_LATENT_REL_L2
    if name == "audio.waveform":
        return bool(difference.max() <= PIPELINE_WAVEFORM_MAX)
    if name.endswith((".out", ".video.keyframes", ".x0", ".clean", "_latent")) or ".eval" in name:
        return rel <= PIPELINE_LATENT_REL_L2
    bound = TOLERANCES["deep" if name.startswith("context.") else "scalar"]
    return bool((difference <= bound.atol + bound.rtol * np.abs(target)).all())
