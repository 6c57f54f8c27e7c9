"""What `pipe(...)` takes by keyword, for type checkers; made from the dataclasses.

Paths may be text, tuples any sequences; images and sound may lie in memory (`media/in_memory.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypedDict, TypeVar, Unpack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from ltx2rt.components.reference_conditioner import ReferenceFile
    from ltx2rt.components.stage_trace import StageTrace
    from ltx2rt.config import GenerationConfig, GuidanceConfig, ImageCondition, NeighbourClip
    from ltx2rt.latents.duration import AutoDuration
    from ltx2rt.lora.files import Lora
    from ltx2rt.pipelines.retake_inputs import TimeWindow
    from ltx2rt.progress import Job
    from ltx2rt.results.clip import Clip
    from ltx2rt.sampling.samplers import Sampler

    #: a condition, or what its first frame shows: a file, or an image in memory
    AnyImage = ImageCondition | str | Path | Image | NDArray[np.uint8] | bytes
    #: a file, the content of one, or samples `[channels, N]` and their rate in Hz
    AnySound = str | Path | bytes | tuple[NDArray[np.float32], int]

Inputs = TypeVar("Inputs")


class GenerationOptions(TypedDict, total=False):
    """The fields of a `GenerationConfig`."""

    prompt: str
    seed: int
    noise: str
    height: int
    width: int
    num_frames: int | AutoDuration
    frame_rate: float
    images: Sequence[AnyImage]
    tiling: str
    loras: Sequence[Lora]
    generated_keyframes: int | Sequence[int]
    hdr: str | None
    sampler: Sampler | None
    sigmas: Sequence[float] | None
    stage_2_sampler: Sampler | None
    stage_2_sigmas: Sequence[float] | None
    stage_2_loras: Sequence[Lora] | None
    stage_2_tile: str | None
    audio: AnySound | None
    audio_start_time: float
    audio_max_duration: float | None
    with_audio: bool
    latents: str | Path | None
    after: NeighbourClip | None
    before: NeighbourClip | None
    embeddings: str | Path | None
    user_prompt: str | None


class RetakeOptions(GenerationOptions, total=False):
    """Those and the fields of `RetakeInputs`."""

    video: str | Path
    start_time: float | None
    end_time: float | None
    video_parts: Sequence[TimeWindow]
    audio_parts: Sequence[TimeWindow]
    mask: str | Path | None
    outpaint: str | None
    denoise_strength: float
    video_frame_rate: float | None
    regenerate_video: bool
    regenerate_audio: bool


class RetakeCalls(Generic[Inputs]):
    """How pipelines that take `RetakeInputs` are called: see `Pipeline`."""

    if TYPE_CHECKING:

        def __call__(
            self,
            config: GenerationConfig | None = None,
            guidance: GuidanceConfig | None = None,
            inputs: Inputs | None = None,
            *,
            job: Job | None = None,
            trace: StageTrace | None = None,
            work_dir: Path | None = None,
            resume: bool = False,
            **options: Unpack[RetakeOptions],
        ) -> Clip: ...

        def generate_many(
            self,
            seeds: Iterable[int] | None = None,
            config: GenerationConfig | None = None,
            guidance: GuidanceConfig | None = None,
            inputs: Inputs | None = None,
            *,
            prompts: Sequence[str] | None = None,
            num_videos: int | None = None,
            job: Job | None = None,
            **options: Unpack[RetakeOptions],
        ) -> Iterator[Clip]: ...


class DubItOptions(GenerationOptions, total=False):
    """Those and the fields of `DubItInputs`."""

    reference_video: str | Path
    reference_strength: float
    reference_downscale: int | None


class DubItCalls(Generic[Inputs]):
    """How pipelines that take `DubItInputs` are called: see `Pipeline`."""

    if TYPE_CHECKING:

        def __call__(
            self,
            config: GenerationConfig | None = None,
            guidance: GuidanceConfig | None = None,
            inputs: Inputs | None = None,
            *,
            job: Job | None = None,
            trace: StageTrace | None = None,
            work_dir: Path | None = None,
            resume: bool = False,
            **options: Unpack[DubItOptions],
        ) -> Clip: ...

        def generate_many(
            self,
            seeds: Iterable[int] | None = None,
            config: GenerationConfig | None = None,
            guidance: GuidanceConfig | None = None,
            inputs: Inputs | None = None,
            *,
            prompts: Sequence[str] | None = None,
            num_videos: int | None = None,
            job: Job | None = None,
            **options: Unpack[DubItOptions],
        ) -> Iterator[Clip]: ...


class DFROptions(GenerationOptions, total=False):
    """Those and the fields of `DFRInputs`."""

    temporal_upsample_rounds: int
    detailing_lora: Lora | None


class DFRCalls(Generic[Inputs]):
    """How pipelines that take `DFRInputs` are called: see `Pipeline`."""

    if TYPE_CHECKING:

        def __call__(
            self,
            config: GenerationConfig | None = None,
            guidance: GuidanceConfig | None = None,
            inputs: Inputs | None = None,
            *,
            job: Job | None = None,
            trace: StageTrace | None = None,
            work_dir: Path | None = None,
            resume: bool = False,
            **options: Unpack[DFROptions],
        ) -> Clip: ...

        def generate_many(
            self,
            seeds: Iterable[int] | None = None,
            config: GenerationConfig | None = None,
            guidance: GuidanceConfig | None = None,
            inputs: Inputs | None = None,
            *,
            prompts: Sequence[str] | None = None,
            num_videos: int | None = None,
            job: Job | None = None,
            **options: Unpack[DFROptions],
        ) -> Iterator[Clip]: ...


class HDRICLoraOptions(GenerationOptions, total=False):
    """Those and the fields of `HDRICLoraInputs`."""

    references: Sequence[ReferenceFile]
    high_quality: bool
    reference_downscale: int | None


class HDRICLoraCalls(Generic[Inputs]):
    """How pipelines that take `HDRICLoraInputs` are called: see `Pipeline`."""

    if TYPE_CHECKING:

        def __call__(
            self,
            config: GenerationConfig | None = None,
            guidance: GuidanceConfig | None = None,
            inputs: Inputs | None = None,
            *,
            job: Job | None = None,
            trace: StageTrace | None = None,
            work_dir: Path | None = None,
            resume: bool = False,
            **options: Unpack[HDRICLoraOptions],
        ) -> Clip: ...

        def generate_many(
            self,
            seeds: Iterable[int] | None = None,
            config: GenerationConfig | None = None,
            guidance: GuidanceConfig | None = None,
            inputs: Inputs | None = None,
            *,
            prompts: Sequence[str] | None = None,
            num_videos: int | None = None,
            job: Job | None = None,
            **options: Unpack[HDRICLoraOptions],
        ) -> Iterator[Clip]: ...


class ICLoraOptions(GenerationOptions, total=False):
    """Those and the fields of `ICLoraInputs`."""

    references: Sequence[ReferenceFile]
    reference_audio: str | Path | None
    identity_guidance: float
    attention_strength: float
    attention_mask: str | Path | None
    skip_stage_2: bool
    reference_downscale: int | None


class ICLoraCalls(Generic[Inputs]):
    """How pipelines that take `ICLoraInputs` are called: see `Pipeline`."""

    if TYPE_CHECKING:

        def __call__(
            self,
            config: GenerationConfig | None = None,
            guidance: GuidanceConfig | None = None,
            inputs: Inputs | None = None,
            *,
            job: Job | None = None,
            trace: StageTrace | None = None,
            work_dir: Path | None = None,
            resume: bool = False,
            **options: Unpack[ICLoraOptions],
        ) -> Clip: ...

        def generate_many(
            self,
            seeds: Iterable[int] | None = None,
            config: GenerationConfig | None = None,
            guidance: GuidanceConfig | None = None,
            inputs: Inputs | None = None,
            *,
            prompts: Sequence[str] | None = None,
            num_videos: int | None = None,
            job: Job | None = None,
            **options: Unpack[ICLoraOptions],
        ) -> Iterator[Clip]: ...


class UpscaleOptions(GenerationOptions, total=False):
    """Those and the fields of `UpscaleInputs`."""

    source: str | Path
    upscale: Literal["spatial", "temporal", "both"]
    refine: float | None


class UpscaleCalls(Generic[Inputs]):
    """How pipelines that take `UpscaleInputs` are called: see `Pipeline`."""

    if TYPE_CHECKING:

        def __call__(
            self,
            config: GenerationConfig | None = None,
            guidance: GuidanceConfig | None = None,
            inputs: Inputs | None = None,
            *,
            job: Job | None = None,
            trace: StageTrace | None = None,
            work_dir: Path | None = None,
            resume: bool = False,
            **options: Unpack[UpscaleOptions],
        ) -> Clip: ...

        def generate_many(
            self,
            seeds: Iterable[int] | None = None,
            config: GenerationConfig | None = None,
            guidance: GuidanceConfig | None = None,
            inputs: Inputs | None = None,
            *,
            prompts: Sequence[str] | None = None,
            num_videos: int | None = None,
            job: Job | None = None,
            **options: Unpack[UpscaleOptions],
        ) -> Iterator[Clip]: ...
