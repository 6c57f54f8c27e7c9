"""What a retake changes in a clip: when, where, and how much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ltx2rt.errors import Field, OptionError, Problem
from ltx2rt.field_types import settle_types
from ltx2rt.latents.frame_sizes import frame_size


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeWindow:
    """A part of a clip in time.

    Attributes:
        start: where it begins, in seconds.
        end: where it ends, in seconds.
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        settle_types(self)
        if not (math.isfinite(self.start) and 0 <= self.start < self.end):
            raise OptionError(
                f"a part from {self.start:g} to {self.end:g} seconds is not 0 <= start < end."
            )


WHOLE = TimeWindow(start=0.0, end=math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetakeInputs:
    """What to change in a clip. A latent frame (8 frames) or step of sound (0.04 s) that a part
    only touches is made anew as a whole, and so is a cell of 32x32 pixels and 8 frames that a mask
    touches. What is not made anew is kept, and what is follows it: kept sound stays as it is, a
    kept picture is as the VAE gives it back. A source without sound gets sound over its whole
    length where any of it is made anew, and none where the denoise strength is below 1.

    Attributes:
        video: the clip to change, or with an HDR format a folder of EXR frames (without sound); it
            gives height, width, frames and frame rate, whatever they are.
        start_time: where the part that is made anew begins, in seconds: picture and sound.
        end_time: where it ends, in seconds.
        video_parts: further parts whose picture alone is made anew.
        audio_parts: further parts whose sound alone is made anew.
        mask: a video or image: white is made anew, within those parts or, where none is named, over
            the whole clip; the sound is kept unless a part of it is named.
        outpaint: a larger size (854x480, 1080p, ...): the source lies in its middle, and what is
            around it is made.
        denoise_strength: how much is made anew, above 0 and at most 1: 1 begins with noise, less
            with the source and so much noise. Without any part or mask the whole clip is.
        video_frame_rate: of a folder of EXR frames, which do not say it. None for a file.
        regenerate_video, regenerate_audio: False keeps that of the source.
    """

    video: Path
    start_time: float | None = None
    end_time: float | None = None
    video_parts: tuple[TimeWindow, ...] = ()
    audio_parts: tuple[TimeWindow, ...] = ()
    mask: Path | None = None
    outpaint: str | None = None
    denoise_strength: float = 1.0
    video_frame_rate: float | None = None
    regenerate_video: bool = True
    regenerate_audio: bool = True

    def __post_init__(self) -> None:
        settle_types(self)
        problems = self._window_problems()
        rate, strength = self.video_frame_rate, self.denoise_strength
        if rate is not None and not (math.isfinite(rate) and 1 <= rate <= 240):
            problems.append(Problem(Field("video_frame_rate"), f"={rate} is not in [1, 240]"))
        if not 0 < strength <= 1:
            problems.append(
                Problem(Field("denoise_strength"), f"={strength} is not above 0 and at most 1")
            )
        if self.outpaint is not None:
            try:
                frame_size(self.outpaint)
            except OptionError as error:
                problems += error.problems
        if self.outpaint is not None and (self.start_time is not None or self.video_parts):
            problems.append(
                Problem(Field("outpaint"), " makes every frame larger: it takes no parts in time")
            )
        if not (self.regenerate_video or self.regenerate_audio):
            problems.append("neither video nor audio is to be made anew")
        elif not problems and not (self.windows("video") or self.windows("audio")):
            problems.append("what is kept leaves nothing to make anew")
        if problems:
            raise OptionError(f"the retake of '{self.video}'", problems)

    def _window_problems(self) -> list[str]:
        start, end = self.start_time, self.end_time
        if start is None and end is None:
            if self._parts or self._everywhere:
                return []
            return [
                Problem(
                    "say what is made anew: ",
                    Field("start_time"),
                    " and ",
                    Field("end_time"),
                    ", parts, a mask, a larger size, or a denoise strength below 1",
                )
            ]
        if start is None or end is None:
            absent = Field("end_time") if end is None else Field("start_time")
            return [Problem("it needs ", absent)]
        if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
            return [
                Problem(
                    Field("start_time"),
                    f"={start} and ",
                    Field("end_time"),
                    f"={end} are not 0 <= start < end",
                )
            ]
        return []

    @property
    def _parts(self) -> bool:
        """Whether parts in time are named."""
        return bool(self.start_time is not None or self.video_parts or self.audio_parts)

    @property
    def _everywhere(self) -> bool:
        """Whether what is said holds for the whole clip where no parts are named."""
        return self.is_spatial or self.denoise_strength < 1

    @property
    def is_spatial(self) -> bool:
        """Whether only a part of the picture is made anew."""
        return self.mask is not None or self.outpaint is not None

    def windows(self, kind: Literal["video", "audio"]) -> tuple[TimeWindow, ...]:
        """The parts of picture or sound that are made anew; () keeps all of it."""
        if not (self.regenerate_video if kind == "video" else self.regenerate_audio):
            return ()
        found = self.video_parts if kind == "video" else self.audio_parts
        if self.start_time is not None and self.end_time is not None:
            if not (kind == "audio" and self.is_spatial):
                found = (TimeWindow(start=self.start_time, end=self.end_time), *found)
        if found:
            return found
        if self.is_spatial:
            return (WHOLE,) if kind == "video" else ()
        return () if self._parts else (WHOLE,)
