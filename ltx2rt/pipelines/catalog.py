"""The table of pipelines; a pipeline's module is imported only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ltx2rt.pipelines.request import Request
from ltx2rt.plain_data import read_plain, to_plain

#: name -> (module of this package, class)
PIPELINES: dict[str, tuple[str, str]] = {
    "distilled": ("distilled", "DistilledPipeline"),
    "one-stage": ("one_stage", "OneStagePipeline"),
    "two-stage": ("two_stages", "TwoStagesPipeline"),
    "two-stage-hq": ("two_stages_hq", "TwoStagesHQPipeline"),
    "keyframe": ("keyframe", "KeyframeInterpolationPipeline"),
    "audio-to-video": ("audio_to_video", "AudioToVideoPipeline"),
    "text-to-audio": ("text_to_audio", "TextToAudioPipeline"),
    "retake": ("retake", "RetakePipeline"),
    "retake-guided": ("retake", "GuidedRetakePipeline"),
    "retake-two-stage": ("retake_two", "TwoStageRetakePipeline"),
    "retake-two-stage-guided": ("retake_two", "GuidedTwoStageRetakePipeline"),
    "dub-it": ("dub_it", "DubItPipeline"),
    "dfr": ("dfr", "DFRPipeline"),
    "hdr-ic-lora": ("hdr_ic_lora", "HDRICLoraPipeline"),
    "ic-lora": ("ic_lora", "ICLoraPipeline"),
    "ic-lora-guided": ("ic_lora", "GuidedICLoraPipeline"),
    "upscale": ("upscale", "UpscalePipeline"),
}


def catalog_class(name: str) -> Any:
    """The class of a pipeline of `PIPELINES`; see `base.pipeline_class` for its type."""
    module, cls = PIPELINES[name]
    return getattr(importlib.import_module(f"ltx2rt.pipelines.{module}"), cls)


def inputs_class(name: str) -> type[Any] | None:
    """What a pipeline takes besides `GenerationConfig`: a frozen dataclass, or None."""
    found: type[Any] | None = catalog_class(name).Inputs
    return found


def read_request(name: str, data: Mapping[str, Any]) -> tuple[Request | None, list[str]]:
    """A pipeline's request from plain data, or everything that is wrong with it.

    Args:
        name: of the pipeline.
        data: `config`, `guidance` and `inputs` as JSON data; fields of `config` that are left out
            are as the pipeline has them.
    """
    cls, own = catalog_class(name), data.get("inputs")
    problems: list[str] = []
    inputs = None
    if cls.Inputs is not None:
        own = own or {}
        problems = cls.missing_inputs(own)
        if not problems:
            inputs, problems = read_plain(cls.Inputs, own, "inputs")
    elif own is not None:
        problems.append("it takes no inputs")
    config = {**to_plain(cls.defaults(inputs, data["config"])), **data["config"]}
    known = {"config": config, "guidance": data.get("guidance")}
    request, wrong = read_plain(Request, known)
    problems += wrong
    if request is None or problems:
        return None, problems
    return replace(request, inputs=inputs), []
