"""A part of a clip made anew (spec/pipelines.md §8)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ltx2rt.components.audio import fit_latent
from ltx2rt.components.diffusion_stage import ModalityRequest
from ltx2rt.errors import Field, OptionError, Problem
from ltx2rt.field_types import settle_types
from ltx2rt.latents.conditioning import TemporalRegion
from ltx2rt.latents.shapes import (
    AudioLatentShape,
    VideoLatentShape,
    VideoPixelShape,
    VideoScaleFactors,
    check_generation_size,
)
from ltx2rt.media.audio import check_rate
from ltx2rt.media.exr import exr_folder_shape, is_exr, iterate_exr_frames
from ltx2rt.media.files import OutputKind
from ltx2rt.media.hdr import codes_to_vae_input
from ltx2rt.media.image import resize_and_crop, to_vae_input
from ltx2rt.media.reader import probe_video, read_video_frames
from ltx2rt.names import AUDIO_ENCODER, ONE_STAGE, VIDEO_ENCODER
from ltx2rt.pipelines.checks import exr_problems
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.guided import GuidedPipeline
from ltx2rt.pipelines.inputs import (
    Sound,
    encode_sound,
    encode_video,
    fit_video,
    read_sound,
)
from ltx2rt.pipelines.request import Request
from ltx2rt.results.clip import Clip


@dataclass(frozen=True, slots=True, kw_only=True)
class RetakeInputs:
    """What to change in a clip.

    Attributes:
        video: the clip to change, or with an HDR format a folder of EXR frames (without sound); it
            gives height, width, frames and frame rate.
        start_time: where the part that is made anew begins, in seconds. A latent frame (8 frames)
            or step of sound (0.04 s) that the part only touches is made anew as a whole.
        end_time: where it ends, in seconds.
        video_frame_rate: of a folder of EXR frames, which do not say it. None for a file.
        regenerate_video, regenerate_audio: False keeps that of the source, and what is made anew
            follows it: its sound as it is, its picture as the VAE gives it back. A source
            without sound gets sound over its whole length, or stays silent if `regenerate_audio` is
            False.
    """

    video: Path
    start_time: float
    end_time: float
    video_frame_rate: float | None = None
    regenerate_video: bool = True
    regenerate_audio: bool = True

    def __post_init__(self) -> None:
        settle_types(self)
        problems: list[str] = []
        start, end = self.start_time, self.end_time
        if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
            problems.append(
                Problem(
                    Field("start_time"),
                    f"={start} and ",
                    Field("end_time"),
                    f"={end} are not 0 <= start < end",
                )
            )
        rate = self.video_frame_rate
        if rate is not None and not (math.isfinite(rate) and 1 <= rate <= 240):
            problems.append(Problem(Field("video_frame_rate"), f"={rate} is not in [1, 240]"))
        if not (self.regenerate_video or self.regenerate_audio):
            problems.append("neither video nor audio is to be made anew")
        if problems:
            raise OptionError(f"the retake of '{self.video}'", problems)


class RetakePipeline(GuidedPipeline):
    """Make a part of a clip anew with a distilled model."""

    name: ClassVar[str] = "retake"
    summary: ClassVar[str] = (
        "Make a part of a clip anew, in time, with a distilled model: video, sound or both."
    )
    guided: ClassVar[bool] = False
    counterpart: ClassVar[str | None] = "retake-guided"
    requires: ClassVar[tuple[str, ...]] = (*ONE_STAGE, VIDEO_ENCODER, AUDIO_ENCODER)
    Inputs: ClassVar[type[Any] | None] = RetakeInputs
    #: of the stream that is kept: 0 shows it clean. The official code adds all the noise (1) before
    #: it freezes the stream, so that what is made anew does not see it; parity tests set that.
    kept_noise_scale: ClassVar[float] = 0.0
    unused: ClassVar[tuple[str, ...]] = (
        "height", "width", "num_frames", "frame_rate", "images", "generated_keyframes",
    )  # fmt: skip
    default_size: ClassVar[tuple[int, int] | None] = None

    @classmethod
    def output_kinds(cls, inputs: Any) -> tuple[OutputKind, ...]:
        """Without sound if the source has none and none is made."""
        has_sound = inputs.regenerate_audio or _has_sound(inputs)
        return ("video", "audio") if has_sound else ("video",)

    def prepare(self, request: Request) -> Request:
        """As `GuidedPipeline.prepare`, at the source's size, frames and frame rate.

        Raises:
            MediaError: the source cannot be read.
            ShapeError: its size does not fit; the nearest valid ones are named.
            OptionError: the part lies behind its end; or EXR frames come without a frame rate or
                an HDR format.
        """
        return super().prepare(_as_source(request, self.scale_factors))

    def generate(self, run: Run) -> Clip:
        video, audio = _targets(run, {"frozen": True, "noise_scale": self.kept_noise_scale})
        result = self.only_stage(run, self.encode(run), video=video, audio=audio)
        return self.clip(run, result.video, result.audio, waveform=_kept_sound(run))


class GuidedRetakePipeline(RetakePipeline):
    """As `RetakePipeline`, with guidance: for a model that is not distilled."""

    name: ClassVar[str] = "retake-guided"
    summary: ClassVar[str] = "As retake, with guidance: for a model that is not distilled."
    guided: ClassVar[bool] = True
    counterpart: ClassVar[str | None] = "retake"


def _has_sound(own: RetakeInputs) -> bool:
    """Whether the source has sound."""
    return not is_exr(own.video) and probe_video(own.video).has_audio


def _as_source(request: Request, scale_factors: VideoScaleFactors) -> Request:
    """The request at the size, frames and frame rate of its source, which is checked."""
    own: RetakeInputs = request.inputs
    problems = exr_problems(request, takes_hdr=True)
    if is_exr(own.video) and own.video_frame_rate is None:
        problems.append(Problem("EXR frames have no frame rate: give ", Field("video_frame_rate")))
    if not is_exr(own.video) and own.video_frame_rate is not None:
        problems.append(
            Problem(Field("video_frame_rate"), " is for a folder of .exr frames: leave it out")
        )
    if problems:
        raise OptionError(f"the retake of '{own.video}'", problems)
    source = _source_shape(own)
    check_generation_size(
        source.height,
        source.width,
        source.num_frames,
        two_stage=False,
        scale_factors=scale_factors,
        subject=f"The size of the source '{own.video}'",
    )
    if not own.regenerate_audio and _has_sound(own):
        check_rate(probe_video(own.video).audio_sampling_rate)
    if own.start_time >= source.duration_s:
        raise OptionError(
            Problem(
                Field("start_time"),
                f"={own.start_time:g} lies behind the end of '{own.video}', which lasts "
                f"{source.duration_s:.3f} s.",
            )
        )
    config = replace(
        request.config,
        height=source.height,
        width=source.width,
        num_frames=source.num_frames,
        frame_rate=source.frame_rate,
    )
    return replace(request, config=config)


def _source_shape(own: RetakeInputs) -> VideoPixelShape:
    """Size, frames and frame rate of the source."""
    if own.video_frame_rate is not None:
        frames, height, width = exr_folder_shape(own.video)
        rate = own.video_frame_rate
    else:
        info = probe_video(own.video)
        frames, height, width = info.num_frames, info.height, info.width
        rate = float(info.frame_rate)
    return VideoPixelShape(num_frames=frames, height=height, width=width, frame_rate=rate)


def _source_pixels(run: Run) -> NDArray[np.float32]:
    """The source's frames as the video encoder takes them."""
    path, count = run.request.inputs.video, run.pixels().num_frames
    if run.hdr is not None and is_exr(path):
        codes = [run.hdr.encode(light[None]) for light in iterate_exr_frames(path, count)]
        return codes_to_vae_input(np.concatenate(codes))
    frames = read_video_frames(path, count)
    return to_vae_input(resize_and_crop(frames, run.config.height, run.config.width))


def _targets(
    run: Run, kept: dict[str, Any]
) -> tuple[ModalityRequest[VideoLatentShape], ModalityRequest[AudioLatentShape] | None]:
    """The source as it enters the stage; `kept` says how what is not made anew is shown."""
    own: RetakeInputs = run.request.inputs
    region: dict[str, Any] = {"items": [TemporalRegion(start_s=own.start_time, end_s=own.end_time)]}
    video = run.video(**(region if own.regenerate_video else kept))
    latent = encode_video(run, _source_pixels(run))
    video = replace(video, initial=fit_video(latent, video.shape.num_frames))
    if not _has_sound(own):
        return video, run.audio() if own.regenerate_audio else None
    audio = run.audio(**(region if own.regenerate_audio else kept))
    latent = encode_sound(run, _source_sound(run))
    return video, replace(audio, initial=fit_latent(latent, audio.shape.num_frames))


def _source_sound(run: Run) -> Sound:
    return read_sound(run.request.inputs.video, 0.0, run.pixels().duration_s)


def _kept_sound(run: Run) -> Sound | None:
    """The source's own sound where it is not made anew. Upstream ships what the VAE makes of it."""
    own: RetakeInputs = run.request.inputs
    kept = not own.regenerate_audio and _has_sound(own)
    return _source_sound(run) if kept else None
