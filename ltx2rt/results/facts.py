"""The facts that a clip's file carries for people, as flat strings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx2rt import __version__
from ltx2rt.config import GuidanceConfig
from ltx2rt.lora.files import Lora
from ltx2rt.plain_data import absolute_path

if TYPE_CHECKING:
    from ltx2rt.results.clip import Clip


def clip_facts(clip: Clip, told: Callable[[Path], str] | None = None) -> dict[str, str]:
    """See `Clip.metadata`."""
    config = clip.config
    facts: dict[str, Any] = {
        "prompt": config.prompt,
        "pipeline": clip.record.pipeline,
        "seed": config.seed,
        "num_frames": clip.num_frames or config.frame_count,
        "frame_rate": clip.frame_rate,
        "height": clip.height,
        "width": clip.width,
        "bundle": clip.record.bundle,
        "ltx2rt_version": __version__,
    }
    if cut := clip.record.stages.get("prompt", {}).get("cut"):
        facts["prompt_cut"] = "; ".join(
            f"{c['tokens']} tokens, {c['kept']} kept, lost: {c['lost']}" for c in cut
        )
    if clip.video_latent is None:
        del facts["height"], facts["width"]
    if config.loras:
        facts["loras"] = lora_text(config.loras, told)
    if config.stage_2_loras is not None:
        facts["stage_2_loras"] = lora_text(config.stage_2_loras, told)
    for name in ("sampler", "sigmas", "stage_2_sampler", "stage_2_sigmas", "user_prompt"):
        if (value := getattr(config, name)) is not None:
            facts[name] = value
    if config.generated_keyframes:
        facts["generated_keyframes"] = config.generated_keyframes
    if clip.guidance is not None:
        facts |= guidance_facts(clip.guidance, told)
    return {k: str(v) for k, v in facts.items()}


def as_utf8(text: str) -> str:
    """Text that every file can hold: what is no character, as in some names, is escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def guidance_facts(
    guidance: GuidanceConfig, told: Callable[[Path], str] | None = None
) -> dict[str, Any]:
    """Guidance as flat facts; what is unset is left out."""
    facts: dict[str, Any] = {
        "negative_prompt": guidance.negative_prompt,
        "num_inference_steps": guidance.num_inference_steps,
        "scheduler": None if guidance.scheduler == "ltx2" else guidance.scheduler,
        "distilled_strengths": guidance.distilled_strengths,
    }
    if guidance.distilled_lora is not None:
        facts["distilled_lora"] = lora_text([guidance.distilled_lora], told)
    for modality, params in (("video", guidance.video), ("audio", guidance.audio)):
        if params is not None:
            facts |= {f"{modality}_{k}": v for k, v in dataclasses.asdict(params).items()}
    return {k: v for k, v in facts.items() if v is not None}


def lora_text(loras: Iterable[Lora], told: Callable[[Path], str] | None = None) -> str:
    """LoRAs as the command line takes them, their paths as they were given or as `told` has it."""
    return " ".join(
        f"{told(absolute_path(x.path)) if told else x.path}:{x.strength:g}" for x in loras
    )
