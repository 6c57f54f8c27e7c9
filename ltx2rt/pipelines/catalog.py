"""The table of pipelines; a pipeline's module is imported only when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

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
    "dub-it": ("dub_it", "DubItPipeline"),
    "dfr": ("dfr", "DFRPipeline"),
    "hdr-ic-lora": ("hdr_ic_lora", "HDRICLoraPipeline"),
    "ic-lora": ("ic_lora", "ICLoraPipeline"),
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
