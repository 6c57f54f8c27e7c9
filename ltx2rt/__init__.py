"""Run compiled LTX-2 audio-video diffusion models without PyTorch.

    import ltx2rt
    bundle = ltx2rt.open_bundle("ltx23.bundle")
    with ltx2rt.DistilledPipeline(bundle) as pipe:
        pipe(prompt="...", seed=42).save("out.mp4")

Names are loaded when first used, so `import ltx2rt` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ltx2rt.bundle.bundle import Bundle as Bundle
    from ltx2rt.bundle.bundle import open_bundle as open_bundle
    from ltx2rt.bundle.manifest import Lora as Lora
    from ltx2rt.components.reference_conditioner import ReferenceFile as ReferenceFile
    from ltx2rt.config import GenerationConfig as GenerationConfig
    from ltx2rt.config import GuidanceConfig as GuidanceConfig
    from ltx2rt.config import ImageCondition as ImageCondition
    from ltx2rt.config import RuntimeConfig as RuntimeConfig
    from ltx2rt.latents.duration import AutoDuration as AutoDuration
    from ltx2rt.pipelines.audio_to_video import AudioToVideoPipeline as AudioToVideoPipeline
    from ltx2rt.pipelines.clip import Clip as Clip
    from ltx2rt.pipelines.dfr import DFRInputs as DFRInputs
    from ltx2rt.pipelines.dfr import DFRPipeline as DFRPipeline
    from ltx2rt.pipelines.distilled import DistilledPipeline as DistilledPipeline
    from ltx2rt.pipelines.dub_it import DubItPipeline as DubItPipeline
    from ltx2rt.pipelines.hdr_ic_lora import HDRICLoraInputs as HDRICLoraInputs
    from ltx2rt.pipelines.hdr_ic_lora import HDRICLoraPipeline as HDRICLoraPipeline
    from ltx2rt.pipelines.ic_lora import ICLoraInputs as ICLoraInputs
    from ltx2rt.pipelines.ic_lora import ICLoraPipeline as ICLoraPipeline
    from ltx2rt.pipelines.keyframe import (
        KeyframeInterpolationPipeline as KeyframeInterpolationPipeline,
    )
    from ltx2rt.pipelines.one_stage import OneStagePipeline as OneStagePipeline
    from ltx2rt.pipelines.retake import GuidedRetakePipeline as GuidedRetakePipeline
    from ltx2rt.pipelines.retake import RetakePipeline as RetakePipeline
    from ltx2rt.pipelines.text_to_audio import TextToAudioPipeline as TextToAudioPipeline
    from ltx2rt.pipelines.two_stages import TwoStagesPipeline as TwoStagesPipeline
    from ltx2rt.pipelines.two_stages_hq import TwoStagesHQPipeline as TwoStagesHQPipeline
    from ltx2rt.pipelines.upscale import UpscaleInputs as UpscaleInputs
    from ltx2rt.pipelines.upscale import UpscalePipeline as UpscalePipeline
    from ltx2rt.sampling.guidance import GuiderParams as GuiderParams

_NAMES = {
    "Bundle": "ltx2rt.bundle.bundle",
    "open_bundle": "ltx2rt.bundle.bundle",
    "AutoDuration": "ltx2rt.latents.duration",
    "GenerationConfig": "ltx2rt.config",
    "GuidanceConfig": "ltx2rt.config",
    "GuiderParams": "ltx2rt.sampling.guidance",
    "Lora": "ltx2rt.bundle.manifest",
    "ImageCondition": "ltx2rt.config",
    "RuntimeConfig": "ltx2rt.config",
    "Clip": "ltx2rt.pipelines.clip",
    "AudioToVideoPipeline": "ltx2rt.pipelines.audio_to_video",
    "DFRInputs": "ltx2rt.pipelines.dfr",
    "DFRPipeline": "ltx2rt.pipelines.dfr",
    "DistilledPipeline": "ltx2rt.pipelines.distilled",
    "DubItPipeline": "ltx2rt.pipelines.dub_it",
    "HDRICLoraInputs": "ltx2rt.pipelines.hdr_ic_lora",
    "HDRICLoraPipeline": "ltx2rt.pipelines.hdr_ic_lora",
    "ICLoraInputs": "ltx2rt.pipelines.ic_lora",
    "ICLoraPipeline": "ltx2rt.pipelines.ic_lora",
    "KeyframeInterpolationPipeline": "ltx2rt.pipelines.keyframe",
    "ReferenceFile": "ltx2rt.components.reference_conditioner",
    "OneStagePipeline": "ltx2rt.pipelines.one_stage",
    "GuidedRetakePipeline": "ltx2rt.pipelines.retake",
    "RetakePipeline": "ltx2rt.pipelines.retake",
    "TextToAudioPipeline": "ltx2rt.pipelines.text_to_audio",
    "TwoStagesPipeline": "ltx2rt.pipelines.two_stages",
    "TwoStagesHQPipeline": "ltx2rt.pipelines.two_stages_hq",
    "UpscaleInputs": "ltx2rt.pipelines.upscale",
    "UpscalePipeline": "ltx2rt.pipelines.upscale",
    "Progress": "ltx2rt.progress",
    "Cancelled": "ltx2rt.progress",
    "Ltx2rtError": "ltx2rt.errors",
    "EnhanceConfig": "ltx2rt.components.enhance",
    "enhance_prompt": "ltx2rt.components.enhance",
    "Record": "ltx2rt.pipelines.record",
    "record_in": "ltx2rt.pipelines.record_files",
    "EnhanceError": "ltx2rt.errors",
    "BundleError": "ltx2rt.errors",
    "CheckpointError": "ltx2rt.errors",
    "EngineError": "ltx2rt.errors",
    "MediaError": "ltx2rt.errors",
    "OptionError": "ltx2rt.errors",
    "ShapeError": "ltx2rt.errors",
    "UnsupportedError": "ltx2rt.errors",
}

__all__ = [*_NAMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'ltx2rt' has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
