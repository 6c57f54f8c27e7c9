"""What one request may ask of a service: checked before any work is done for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ltx2rt.errors import Field, MediaError, OptionError, Problem
from ltx2rt.latents.duration import AutoDuration
from ltx2rt.latents.frame_sizes import frame_size
from ltx2rt.media.container import has_picture, reading, video_stream
from ltx2rt.pipelines.request import Request

_MICROSECONDS = 1_000_000  # libav's unit of a container's duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that one request may ask for.

    Attributes:
        max_pixels: width times height of a clip.
        max_frames: pixel frames of a clip.
        max_volume: width times height times frames of a clip.
        max_steps: steps of a stage.
        max_prompt_chars: characters of a prompt, and of a negative one.
        max_loras: LoRAs of a stage.
        max_media: files that a request brings along.
        max_media_bytes: of one of them.
        max_media_pixels: of one picture or frame of them, decoded.
        max_media_s: seconds of a video or sound.
        max_body_bytes: of a request, its files included.
    """

    max_pixels: int = 3840 * 2176
    max_frames: int = 1201
    max_volume: int = 2_000_000_000
    max_steps: int = 200
    max_prompt_chars: int = 20_000
    max_loras: int = 16
    max_media: int = 32
    max_media_bytes: int = 256_000_000
    max_media_pixels: int = 40_000_000
    max_media_s: int = 300
    max_body_bytes: int = 400_000_000

    def __post_init__(self) -> None:
        problems = [
            Problem(Field(f.name), f"={getattr(self, f.name)} is less than 1")
            for f in fields(self)
            if getattr(self, f.name) < 1
        ]
        if problems:
            raise OptionError("limits", problems)

    def problems(self, request: Request) -> Iterator[str]:
        """What in a request is more than is allowed here."""
        config, guidance = request.config, request.guidance
        frames = config.num_frames
        if isinstance(frames, AutoDuration):
            frames = frames.limits(config.frame_rate)[1]
        pixels = config.width * config.height
        if (larger := getattr(request.inputs, "outpaint", None)) is not None:
            height, width = frame_size(larger)
            pixels = max(pixels, height * width)
        steps = [len(s) - 1 for s in (config.sigmas, config.stage_2_sigmas) if s]
        prompts = [config.prompt]
        if guidance is not None:
            steps.append(guidance.num_inference_steps or 0)
            prompts.append(guidance.negative_prompt)
        asked = {
            f"a clip of {config.width}x{config.height} pixels": (pixels, "max_pixels"),
            f"a clip of {frames} frames": (frames, "max_frames"),
            f"a clip of {config.width}x{config.height}x{frames}": (pixels * frames, "max_volume"),
            "a stage": (max(steps, default=0), "max_steps"),
            "a prompt": (max(map(len, prompts)), "max_prompt_chars"),
            "a stage's LoRAs": (max(len(config.loras), len(config.refine_loras)), "max_loras"),
        }
        for what, (count, name) in asked.items():
            most = getattr(self, name)
            if count > most:
                unit = name.removeprefix("max_").replace("_", " ")
                yield f"{what}: {count} {unit} are asked for; this server allows {most}"

    def check_media(self, path: Path, shown: str) -> None:
        """Refuse a file that is no media, or that would decode to more than is allowed: headers are
        read, nothing is decoded.

        Args:
            path: the file.
            shown: what the client calls it.

        Raises:
            OptionError: says what is wrong.
        """
        size = _picture_size(path)
        if size is None:
            refusal = OptionError(f"{shown} is not a picture, video or sound.")
            try:
                with reading(path, "media") as container:
                    if has_picture(container):
                        context = video_stream(container, path).codec_context
                        size = context.width, context.height
                    is_sound = bool(container.streams.audio)
                    seconds = (container.duration or 0) / _MICROSECONDS
            except MediaError as error:
                raise refusal from error
            if not is_sound and not (size and all(size)):  # libav guesses by names
                raise refusal
            if seconds > self.max_media_s:
                raise OptionError(
                    f"{shown} lasts {seconds:.0f} s; this server allows {self.max_media_s}."
                )
        if size is not None and size[0] * size[1] > self.max_media_pixels:
            raise OptionError(
                f"{shown} has {size[0]}x{size[1]} pixels; this server allows "
                f"{self.max_media_pixels}: scale it down first."
            )


def _picture_size(path: Path) -> tuple[int, int] | None:
    """Width and height that a still's header names; None if it is not a still."""
    try:
        with Image.open(path) as image:
            return image.size
    except Image.DecompressionBombError:
        return 2**31, 2**31
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return None
