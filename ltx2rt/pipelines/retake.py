"""A part of a clip made anew (spec/pipelines.md §8)."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any, ClassVar

from ltx2rt.components.reference_conditioner import check_mask
from ltx2rt.errors import Field, OptionError, Problem, ShapeError
from ltx2rt.media.audio import check_rate
from ltx2rt.media.exr import is_exr
from ltx2rt.media.files import OutputKind
from ltx2rt.media.reader import probe_video
from ltx2rt.names import AUDIO_ENCODER, ONE_STAGE, VIDEO_ENCODER
from ltx2rt.pipelines.checks import exr_problems
from ltx2rt.pipelines.facts import MEDIA_FIELDS
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.guided import GuidedPipeline
from ltx2rt.pipelines.inputs import image_items
from ltx2rt.pipelines.options import RetakeCalls
from ltx2rt.pipelines.request import Request
from ltx2rt.pipelines.retake_inputs import RetakeInputs
from ltx2rt.pipelines.retake_source import (
    audio_target,
    has_sound,
    kept_sound,
    makes_sound,
    outpainted,
    source_shape,
    video_target,
)
from ltx2rt.results.clip import Clip


class RetakePipeline(RetakeCalls[RetakeInputs], GuidedPipeline):
    """Make a part of a clip anew with a distilled model.

    ```python
    with ltx2rt.RetakePipeline(bundle) as pipe:
        clip = pipe(prompt="It begins to snow.", video="in.mp4", start_time=0.1, end_time=0.3)
        clip.save("out.mp4")
    ```
    """

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
        "height", "width", "num_frames", "frame_rate", "generated_keyframes",
        *MEDIA_FIELDS,
    )  # fmt: skip
    default_size: ClassVar[tuple[int, int] | None] = None
    any_length: ClassVar[bool] = True

    @classmethod
    def output_kinds(cls, inputs: Any) -> tuple[OutputKind, ...]:
        """Without sound if the source has none and none is made."""
        sounds = makes_sound(inputs) or has_sound(inputs)
        return ("video", "audio") if sounds else ("video",)

    def prepare(self, request: Request) -> Request:
        """As `GuidedPipeline.prepare`, at the source's size, or that around it, and its frames and
        frame rate.

        Raises:
            MediaError: the source cannot be read.
            ShapeError: it has an odd side.
            OptionError: a part lies behind its end, a larger size is smaller, or EXR frames come
                without a frame rate or an HDR format.
        """
        return super().prepare(_as_source(request))

    def generate(self, run: Run) -> Clip:
        images = image_items(run, {"stage_1": 1})["stage_1"]
        kept = {"frozen": True, "noise_scale": self.kept_noise_scale}
        video, audio = video_target(run, kept, images), audio_target(run, kept)
        result = self.first_stage(
            run,
            self.encode(run),
            video=video,
            audio=audio,
            strength=run.request.inputs.denoise_strength,
        )
        return self.clip(run, result.video, result.audio, waveform=kept_sound(run))


class GuidedRetakePipeline(RetakePipeline):
    """As `RetakePipeline`, with guidance: for a model that is not distilled."""

    name: ClassVar[str] = "retake-guided"
    summary: ClassVar[str] = "As retake, with guidance: for a model that is not distilled."
    guided: ClassVar[bool] = True
    counterpart: ClassVar[str | None] = "retake"


#: seconds behind the end of a source that are taken for a rounded length
_ROUNDED_S = 1.0


def _warn_of_late_ends(own: RetakeInputs, duration_s: float) -> None:
    windows = (*own.windows("video"), *own.windows("audio"))
    ends = [w.end for w in windows if math.isfinite(w.end)]
    if ends and max(ends) > duration_s + _ROUNDED_S:
        warnings.warn(
            f"a part to be made anew ends at {max(ends):g} seconds, and '{own.video}' lasts "
            f"{duration_s:.3f}: it is made anew up to its end.",
            stacklevel=2,
        )


def _as_source(request: Request) -> Request:
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
    source = source_shape(own)
    if source.height % 2 or source.width % 2:
        raise ShapeError(
            f"the source '{own.video}' has {source.width}x{source.height} pixels, an odd side that "
            "no video can be written with; crop it to even sides."
        )
    if not own.windows("audio") and has_sound(own):
        check_rate(probe_video(own.video).audio_sampling_rate)
    late = [w for w in (*own.video_parts, *own.audio_parts) if w.start >= source.duration_s]
    if own.start_time is not None and own.start_time >= source.duration_s:
        named: list[str | Field] = [Field("start_time"), f"={own.start_time:g}"]
    else:
        named = [f"the part from {late[0].start:g} seconds on"] if late else []
    if named:
        raise OptionError(
            Problem(
                *named,
                f" lies behind the end of '{own.video}', which lasts {source.duration_s:.3f} s.",
            )
        )
    _warn_of_late_ends(own, source.duration_s)
    height, width = outpainted(own, source)
    if height < source.height or width < source.width:
        raise OptionError(
            Problem(
                Field("outpaint"),
                f"={own.outpaint} is {width}x{height} pixels, smaller than the "
                f"{source.width}x{source.height} of '{own.video}'.",
            )
        )
    if own.mask is not None:
        check_mask(own.mask)
    config = replace(
        request.config,
        height=height,
        width=width,
        num_frames=source.num_frames,
        frame_rate=source.frame_rate,
    )
    return replace(request, config=config)
