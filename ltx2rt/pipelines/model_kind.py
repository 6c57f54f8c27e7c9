"""Whether a pipeline samples a model as it was trained: distilled or full."""

from __future__ import annotations

import warnings
from pathlib import Path

from ltx2rt.bundle.manifest import ModelInfo
from ltx2rt.config import GuidanceConfig
from ltx2rt.lora.describe import names_distillation
from ltx2rt.pipelines.facts import PipelineFacts
from ltx2rt.pipelines.request import Request


def samples_distilled(
    pipeline: type[PipelineFacts], model: ModelInfo, guidance: GuidanceConfig | None
) -> bool:
    """Whether a guided two-stage pipeline takes a distilled model for what it is: without a
    distilled LoRA.
    """
    without = guidance is None or guidance.distilled_lora is None
    return pipeline.guided and pipeline.two_stage and model.is_distilled is True and without


def warn_of_model(pipeline: type[PipelineFacts], model: ModelInfo, request: Request) -> None:
    """Warn where a distilled model is sampled like a full one, which overdoes it, or a full one
    like a distilled one, which leaves noise; nothing is said where no file name says which it is,
    or where sigmas are given.
    """
    config = request.config
    if samples_distilled(pipeline, model, request.guidance):
        return
    distilled = model.is_distilled
    if distilled is False:
        distilled = any(
            names_distillation(Path(x.path).name) for x in config.loras if x.strength > 0
        )
    if distilled is None or distilled is not pipeline.guided or config.sigmas is not None:
        return
    found, wanted = ("distilled", "full") if distilled else ("not distilled", "distilled")
    other = pipeline.counterpart
    advice = f"use the {other} pipeline" if other else f"use a bundle of a {wanted} model"
    if not distilled:
        advice += ", or add the distilled LoRA"
    warnings.warn(
        f"this model is {found}, by its file name, and the {pipeline.name} pipeline samples it as "
        f"a {wanted} one: {advice}.",
        stacklevel=3,
    )
