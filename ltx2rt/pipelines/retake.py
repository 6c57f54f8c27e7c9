"""A part of a clip made anew (spec/pipelines.md §8)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ltx2rt.components.audio import fit_latent
from ltx2rt.components.diffusion_stage import ModalityRequest
from ltx2rt.conditioning import TemporalRegion
from ltx2rt.errors import OptionError, join_problems
from ltx2rt.media.audio import check_rate
from ltx2rt.media.files import OutputKind
from ltx2rt.media.reader import probe_video, read_video_frames
from ltx2rt.pipelines.base import ONE_STAGE, Pipeline
from ltx2rt.pipelines.guided import GuidedPipeline
from ltx2rt.pipelines.media_steps import (
    Sound,
    check_video,
    encode_sound,
    encode_video,
    fit_video,
    read_sound,
)
from ltx2rt.pipelines.run import Request, Run
from ltx2rt.schedules import DISTILLED
from ltx2rt.shapes import (
    AudioLatentShape,
    VideoLatentShape,
    VideoScaleFactors,
    check_generation_size,
)

if TYPE_CHECKING:
    from ltx2rt.pipelines.clip import Clip

_REQUIRES = (*ONE_STAGE, "video_encoder", "audio_encoder")
_UNUSED = (
    "height", "width", "num_frames", "frame_rate", "images", "generated_keyframes", "hdr",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RetakeInputs:
    """What to change in a clip.

    Attributes:
        video: the source; it gives height, width, frames and frame rate.
        start_time, end_time: the part that is made anew, in seconds; a latent frame (8 frames) or
            step of sound (0.04 s) that only touches it is made anew as a whole.
        regenerate_video, regenerate_audio: False keeps that of the source: its sound as it is, its
            picture as the VAE gives it back. A source without sound gets sound over its whole
            length, or stays silent if `regenerate_audio` is False.
    """

    video: Path
    start_time: float
    end_time: float
    regenerate_video: bool = True
    regenerate_audio: bool = True

    def __post_init__(self) -> None:
        problems = []
        start, end = self.start_time, self.end_time
        if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
            problems.append(f"start_time={start} and end_time={end} are not 0 <= start < end")
        if not (self.regenerate_video or self.regenerate_audio):
            problems.append("neither video nor audio is to be made anew")
        if problems:
            raise OptionError(join_problems(f"the retake of '{self.video}'", problems))


class RetakePipeline(Pipeline):
    """Make a part of a clip anew with a distilled model."""

    name: ClassVar[str] = "retake"
    summary: ClassVar[str] = (
        "Make a part of a clip anew, in time, with a distilled model: video, sound or both."
    )
    requires: ClassVar[tuple[str, ...]] = _REQUIRES
    Inputs: ClassVar[type[Any] | None] = RetakeInputs
    unused: ClassVar[tuple[str, ...]] = _UNUSED
    default_size: ClassVar[tuple[int, int] | None] = None

    @classmethod
    def output_kinds(cls, inputs: Any) -> tuple[OutputKind, ...]:
        """Without sound if the source has none and none is made."""
        return _output_kinds(inputs)

    def prepare(self, request: Request) -> Request:
        """As `Pipeline.prepare`, at the source's size, frames and frame rate.

        Raises:
            MediaError: the source cannot be read.
            ShapeError: its size does not fit; the nearest valid ones are named.
            OptionError: the part lies behind its end.
        """
        return super().prepare(_as_source(request, self.scale_factors))

    def generate(self, run: Run) -> Clip:
        video, audio = _targets(run)
        context = run.encode([run.config.prompt])
        result = run.stage(
            "stage_1", DISTILLED, context, run.config.loras, video=video, audio=audio
        )
        return run.clip(result.video, result.audio, waveform=_kept_sound(run))


class GuidedRetakePipeline(GuidedPipeline):
    """As `RetakePipeline`, with guidance: for a model that is not distilled."""

    name: ClassVar[str] = "retake-guided"
    summary: ClassVar[str] = "As retake, with guidance: for a model that is not distilled."
    requires: ClassVar[tuple[str, ...]] = _REQUIRES
    Inputs: ClassVar[type[Any] | None] = RetakeInputs
    unused: ClassVar[tuple[str, ...]] = _UNUSED
    default_size: ClassVar[tuple[int, int] | None] = None

    @classmethod
    def output_kinds(cls, inputs: Any) -> tuple[OutputKind, ...]:
        """Without sound if the source has none and none is made."""
        return _output_kinds(inputs)

    def prepare(self, request: Request) -> Request:
        """As `RetakePipeline.prepare` and `GuidedPipeline.prepare`."""
        return super().prepare(_as_source(request, self.scale_factors))

    def generate(self, run: Run) -> Clip:
        video, audio = _targets(run)
        result = self.only_stage(run, self.encode(run), video=video, audio=audio)
        return run.clip(result.video, result.audio, waveform=_kept_sound(run))


def _output_kinds(own: RetakeInputs) -> tuple[OutputKind, ...]:
    has_sound = own.regenerate_audio or probe_video(own.video).has_audio
    return ("video", "audio") if has_sound else ("video",)


def _as_source(request: Request, scale_factors: VideoScaleFactors) -> Request:
    """The request at the size, frames and frame rate of its source, which is checked."""
    own: RetakeInputs = request.inputs
    info = check_video(own.video)
    check_generation_size(
        info.height,
        info.width,
        info.num_frames,
        two_stage=False,
        scale_factors=scale_factors,
        subject=f"The size of the source '{own.video}'",
    )
    if info.has_audio and not own.regenerate_audio:
        check_rate(info.audio_sampling_rate)
    if own.start_time >= info.duration_s:
        raise OptionError(
            f"start_time={own.start_time:g} lies behind the end of '{own.video}', which lasts "
            f"{info.duration_s:.3f} s."
        )
    config = replace(
        request.config,
        height=info.height,
        width=info.width,
        num_frames=info.num_frames,
        frame_rate=float(info.frame_rate),
    )
    return replace(request, config=config)


def _targets(
    run: Run,
) -> tuple[ModalityRequest[VideoLatentShape], ModalityRequest[AudioLatentShape] | None]:
    """The source as it enters the stage: all its frames, whatever their time stamps say. What is
    kept is noised like the rest before it is frozen, as upstream does it; the sampler brings it
    back to the source.
    """
    own: RetakeInputs = run.request.inputs
    region = {"items": [TemporalRegion(start_s=own.start_time, end_s=own.end_time)]}
    kept = {"frozen": True}
    video = run.video(**(region if own.regenerate_video else kept))
    frames = read_video_frames(own.video, run.pixels().num_frames)
    latent = encode_video(run, frames, run.config.height, run.config.width)
    video = replace(video, initial=fit_video(latent, video.shape.num_frames))
    if not probe_video(own.video).has_audio:
        return video, run.audio() if own.regenerate_audio else None
    audio = run.audio(**(region if own.regenerate_audio else kept))
    latent = encode_sound(run, _source_sound(run))
    return video, replace(audio, initial=fit_latent(latent, audio.shape.num_frames))


def _source_sound(run: Run) -> Sound:
    return read_sound(run.request.inputs.video, 0.0, run.pixels().duration_s)


def _kept_sound(run: Run) -> Sound | None:
    """The source's own sound where it is not made anew. Upstream ships what the VAE makes of it."""
    own: RetakeInputs = run.request.inputs
    kept = not own.regenerate_audio and probe_video(own.video).has_audio
    return _source_sound(run) if kept else None
