"""The clip that a retake changes: its size, and its latents as they enter a stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ltx2rt.components.audio import fit_latent
from ltx2rt.components.diffusion_stage import ModalityRequest
from ltx2rt.components.reference_conditioner import load_mask
from ltx2rt.engine import F32, Array
from ltx2rt.errors import Field, OptionError, Problem
from ltx2rt.latents.conditioning import (
    ConditioningItem,
    Remade,
    make_audio_state,
    make_video_state,
    mask_latent,
)
from ltx2rt.latents.frame_sizes import frame_size
from ltx2rt.latents.shapes import AudioLatentShape, VideoLatentShape, VideoPixelShape
from ltx2rt.media.exr import exr_folder_shape, is_exr, iterate_exr_frames
from ltx2rt.media.hdr import codes_to_vae_input
from ltx2rt.media.image import resize_and_crop, resize_and_pad, to_vae_input
from ltx2rt.media.reader import iterate_video_frames, probe_video
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.inputs import (
    Sound,
    centred,
    encode_sound,
    encode_video,
    fit_video,
    read_sound,
)
from ltx2rt.pipelines.retake_inputs import RetakeInputs

Shape = TypeVar("Shape", VideoLatentShape, AudioLatentShape)


def has_sound(own: RetakeInputs) -> bool:
    """Whether the source has sound."""
    return not is_exr(own.video) and probe_video(own.video).has_audio


def makes_sound(own: RetakeInputs) -> bool:
    """Whether any sound is made anew. Where the source has none, there is none to begin with that
    less than all of could be made anew.
    """
    return bool(own.windows("audio")) and (own.denoise_strength == 1 or has_sound(own))


def source_shape(own: RetakeInputs) -> VideoPixelShape:
    """Size, frames and frame rate of the source."""
    if own.video_frame_rate is not None:
        frames, height, width = exr_folder_shape(own.video)
        rate = own.video_frame_rate
    else:
        info = probe_video(own.video)
        frames, height, width = info.num_frames, info.height, info.width
        rate = float(info.frame_rate)
    return VideoPixelShape(num_frames=frames, height=height, width=width, frame_rate=rate)


def video_target(
    run: Run, kept: dict[str, Any], images: Sequence[ConditioningItem], divisor: int = 1
) -> ModalityRequest[VideoLatentShape]:
    """The source's picture as it enters a stage; the video encoder is released.

    Args:
        kept: how what is not made anew is shown.
        images: what is shown besides, where any of the picture is made anew.
        divisor: by what height and width of the stage are smaller than the clip's.
    """
    own: RetakeInputs = run.request.inputs
    treated = _treated(own, "video", kept, cells(run, divisor))
    if own.windows("video"):
        treated["items"] = [*treated["items"], *images]
    video = run.video(divisor, **treated)
    latent = encode_video(run, _source_pixels(run, divisor))
    return replace(video, initial=fit_video(latent, video.shape.num_frames))


def audio_target(run: Run, kept: dict[str, Any]) -> ModalityRequest[AudioLatentShape] | None:
    """The source's sound as it enters a stage, or that which is made where it has none; None: there
    shall be none. The audio encoder is released.
    """
    own: RetakeInputs = run.request.inputs
    if not has_sound(own):
        return run.audio() if makes_sound(own) else None
    audio = run.audio(**_treated(own, "audio", kept))
    latent = encode_sound(run, _source_sound(run))
    return replace(audio, initial=fit_latent(latent, audio.shape.num_frames))


def _treated(
    own: RetakeInputs,
    kind: Literal["video", "audio"],
    kept: dict[str, Any],
    where: F32 | None = None,
) -> dict[str, Any]:
    """How a stream enters a stage."""
    windows = [(w.start, w.end) for w in own.windows(kind)]
    if not windows:
        return kept
    return {
        "items": [Remade(windows=windows, cells=where)],
        "noise_scale": own.denoise_strength,
    }


def refined(
    run: Run, target: ModalityRequest[Shape], made: Array, noise_scale: float
) -> ModalityRequest[Shape]:
    """A stream as it enters a stage that refines what another one made of it.

    Args:
        target: the source at the size of this stage.
        made: of that size: taken where the target's `Remade` lies; the source stays elsewhere.
        noise_scale: see `ModalityRequest`.
    """
    assert target.initial is not None
    shape: Any = target.shape
    if isinstance(shape, VideoLatentShape):
        factors = run.engines.scale_factors
        state = make_video_state(shape, run.canvas.frame_rate, scale_factors=factors)
        grid = (1, 1, *shape.sizes[2:])
    else:
        state, grid = make_audio_state(shape), (1, 1, shape.num_frames, 1)
    for item in target.items:
        if isinstance(item, Remade):
            state = item.apply(state)
    where = state.mask.reshape(grid) > 0
    return replace(target, initial=np.where(where, made, target.initial), noise_scale=noise_scale)


def _source_pixels(run: Run, divisor: int) -> NDArray[np.float32]:
    """The source's frames as the video encoder takes them: on the canvas of a stage."""
    path, canvas = run.request.inputs.video, run.pixels()
    size, factors = (run.config.height, run.config.width), run.engines.scale_factors

    def placed(frame: Array) -> F32:
        whole = resize_and_pad(centred(frame[None], size, factors), canvas.height, canvas.width)
        if divisor == 1:
            return whole
        return resize_and_crop(whole, canvas.height // divisor, canvas.width // divisor)

    def stacked(frames: Iterator[F32]) -> F32:
        found = [*frames]
        missing = -(len(found) - 1) % factors.time
        return np.concatenate([*found, *[found[-1]] * missing])

    if run.hdr is not None and is_exr(path):
        light = iterate_exr_frames(path, canvas.num_frames)
        return codes_to_vae_input(stacked(run.hdr.encode(placed(frame)) for frame in light))
    return to_vae_input(stacked(placed(f) for f in iterate_video_frames(path, canvas.num_frames)))


def cells(run: Run, divisor: int = 1) -> F32 | None:
    """The cells of a stage's video that the mask touches (above 0), `[1, F, H, W]`; None: all.

    Raises:
        OptionError: the mask is black, and nothing else is made anew.
    """
    own: RetakeInputs = run.request.inputs
    if not own.is_spatial:
        return None
    canvas = run.pixels()
    size, factors = (run.config.height, run.config.width), run.engines.scale_factors
    wanted = np.zeros((1, canvas.num_frames, *size), bool)
    if own.outpaint is not None:
        source = source_shape(own)
        inside = np.ones((1, source.height, source.width, 1), np.uint8)
        wanted |= centred(inside, size, factors, outside=0)[..., 0] == 0
    if own.mask is not None:
        shown = [read[..., None] > 0.5 for read in load_mask(own.mask, canvas, size)[0, 0]]
        frames = np.stack(shown)[:, : size[0], : size[1], 0]
        missing = canvas.num_frames - len(frames)
        wanted |= np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])[None]
        if not wanted.any():
            raise OptionError(
                Problem(
                    Field("mask"),
                    f"={own.mask} is black all over: it leaves nothing to make anew; what is to be "
                    "made anew is white.",
                )
            )
    below, beside = canvas.height - size[0], canvas.width - size[1]
    pixels = np.pad(wanted, ((0, 0), (0, 0), (0, below), (0, beside)), mode="edge")
    shape = run.video(divisor).shape
    found = mask_latent(pixels[:, None].astype(np.float32), shape)
    return found.reshape(shape.batch, *shape.sizes[2:])


def outpainted(own: RetakeInputs, source: VideoPixelShape) -> tuple[int, int]:
    """Height and width of the clip."""
    return (source.height, source.width) if own.outpaint is None else frame_size(own.outpaint)


def _source_sound(run: Run, *, keep_channels: bool = False) -> Sound:
    path, seconds = run.request.inputs.video, run.pixels().duration_s
    return read_sound(path, 0.0, seconds, keep_channels=keep_channels)


def kept_sound(run: Run) -> Sound | None:
    """The source's own sound where it is not made anew. Upstream ships what the VAE makes of it."""
    own: RetakeInputs = run.request.inputs
    kept = not own.windows("audio") and has_sound(own)
    return _source_sound(run, keep_channels=True) if kept else None
