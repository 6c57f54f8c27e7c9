"""Guidance and LoRAs as the flat facts that a clip's file carries for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ltx2rt.config import GuidanceConfig
from ltx2rt.lora.files import Lora
from ltx2rt.plain_data import absolute_path


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
