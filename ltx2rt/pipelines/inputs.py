"""What goes into the stages of a generation: text contexts, images, references, sound, video."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx2rt.components.embeddings import read_embeddings
from ltx2rt.components.finite import check_finite
from ltx2rt.components.image_conditioner import EncodedImage, encode_images
from ltx2rt.components.reference_conditioner import ReferenceFile, reference_item
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.components.tokenizer import MAX_TOKENS
from ltx2rt.engine import Array
from ltx2rt.latents.conditioning import ConditioningItem, GeneratedKeyframes, keyframe_indices
from ltx2rt.latents.duration import AutoDuration
from ltx2rt.latents.shapes import VideoScaleFactors, rendered_size
from ltx2rt.latents.tiling import TilingConfig
from ltx2rt.lora.files import Lora
from ltx2rt.media.audio import LAYOUTS
from ltx2rt.media.image import resize_and_pad
from ltx2rt.media.sound import mixed_down, probe_audio, read_audio
from ltx2rt.names import (
    AUDIO_ENCODER,
    DURATION_HEAD,
    TEXT_BLOCK_FULL,
    TEXT_ENCODER,
    TEXT_HEAD,
    VIDEO_ENCODER,
)
from ltx2rt.pipelines.checks import check_keyframes
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.neighbours import neighbour_items

Sound = tuple[NDArray[np.float32], int]


def encode_prompts(run: Run, prompts: Sequence[str], *, audio_only: bool = False) -> TextContext:
    """Contexts of prompts, the first of which describes the clip; the text encoder is released.
    They come from the request's embeddings if it names some, from the clip before if its prompts
    were the same, or from a run that was cut off. An automatic duration is predicted from them:
    from here on, `run.config` has a number.

    Args:
        audio_only: the clip is sound alone, which the duration depends on.

    Raises:
        OptionError: an image is placed behind the end of the predicted clip.
    """
    embeddings, engines, key = run.config.embeddings, run.engines, tuple(prompts)
    loras = engines.loader.text_loras(run.config.loras) if embeddings is None else ()
    if embeddings is not None:
        context = _ready(run, lambda: read_embeddings(embeddings, len(prompts)))
    elif (known := engines.contexts) is not None and known[:2] == (key, loras):
        context = _ready(run, lambda: known[2])
    else:
        context = _encoded(run, prompts, loras)
        engines.contexts = key, loras, context
    contexts = {"the video context": context.video, "the audio context": context.audio}
    check_finite("prompt", contexts, allowed=engines.runtime.allow_nan)
    if embeddings is None:
        _note_cut_prompts(run, prompts)
    if run.trace is not None:
        run.trace.tensors["context.video"] = context.video[:1]
        run.trace.tensors["context.audio"] = context.audio[:1]
    if isinstance(run.config.num_frames, AutoDuration):
        _predict_duration(run, run.config.num_frames, context, audio_only=audio_only)
    return context


def _ready(run: Run, context: Callable[[], TextContext]) -> TextContext:
    """Contexts that need no text encoder."""
    run.job.report("prompt", 0, 1)
    ready = context()
    run.job.report("prompt", 1, 1)
    return ready


def _encoded(run: Run, prompts: Sequence[str], loras: Sequence[Lora]) -> TextContext:
    facts = {"prompts": list(prompts)}
    if loras:
        facts["loras"] = [f"{lora.path}:{lora.strength:g}" for lora in loras]
    kept = run.kept("context", facts)
    if kept is not None:
        return _ready(run, lambda: TextContext(kept["video"], kept["audio"]))
    encoder = run.engines.prompt_encoder(loras)
    layers = len(run.engines.source.options(TEXT_HEAD)["layers"])
    run.job.report("prompt", 0, layers)
    context = encoder(prompts, lambda done, total: run.job.report("prompt", done, total))
    run.engines.release(*TEXT_ENCODER, TEXT_BLOCK_FULL)
    if run.store is not None:
        run.store.save("context", facts, {"video": context.video, "audio": context.audio})
    return context


def _note_cut_prompts(run: Run, prompts: Sequence[str]) -> None:
    """Warn about prompts that the text encoder does not see to their end, and put that into the
    clip's record.
    """
    for prompt in prompts:
        count, lost = run.engines.tokenizer().cut(prompt)
        if lost:
            facts = {"tokens": count, "kept": MAX_TOKENS, "lost": lost}
            run.stages.setdefault("prompt", {"cut": []})["cut"].append(facts)
            warnings.warn(
                f"a prompt takes {count} tokens, of which the text encoder sees the first "
                f"{MAX_TOKENS}; lost is: {lost!r}",
                stacklevel=3,
            )


def _predict_duration(
    run: Run, asked: AutoDuration, context: TextContext, *, audio_only: bool
) -> None:
    run.job.report("duration", 0, 1)
    seconds = run.engines.duration_head()(context, audio_only=audio_only)
    run.engines.release(DURATION_HEAD)
    frames = asked.frames(seconds, run.config.frame_rate)
    run.request = replace(run.request, config=replace(run.config, num_frames=frames))
    run.canvas = replace(run.canvas, num_frames=frames)
    if run.check_sizes is not None:
        run.check_sizes(run.request)
    run.job.report("duration", 1, 1, f"{frames} frames")


def keyframe_items(run: Run) -> list[ConditioningItem]:
    """The slots of generated keyframes, for stage 1 after the images; [] if none are asked for.
    Prompts are encoded before: the duration must be known.

    Raises:
        UnsupportedError, OptionError: see `check_keyframes`.
    """
    check_keyframes(run.engines.source, run.config)
    indices = keyframe_indices(run.config.generated_keyframes, run.config.frame_count)
    return [GeneratedKeyframes(frame_indices=indices)] if indices else []


def image_items(
    run: Run, divisors: Mapping[str, int], *, guiding: bool = False
) -> dict[str, list[ConditioningItem]]:
    """The images, and the clips before and after this one, as conditioning of each stage.

    Args:
        divisors: see `images_of_stages`.
        guiding: attach every image as a keyframe, also one at frame 0.
    """
    items = neighbour_items(run, divisors)
    for stage, images in images_of_stages(run, divisors).items():
        items[stage] += [image.item(guiding=guiding) for image in images]
    return items


def images_of_stages(run: Run, divisors: Mapping[str, int]) -> dict[str, list[EncodedImage]]:
    """The images at the size of each stage; the video encoder is released.

    Args:
        divisors: stage name -> by what its height and width are smaller than the clip's.
    """
    encoded: dict[str, list[EncodedImage]] = {stage: [] for stage in divisors}
    for stage, divisor in divisors.items() if run.config.images else ():
        run.job.report(f"images {stage}", 0, 1)
        encoded[stage] = encode_images(
            run.config.images,
            run.engines.video_encoder(),
            run.canvas.height // divisor,
            run.canvas.width // divisor,
            run.shown(divisor),
            run.engines.source.model.image_crf,
            run.canvas,
            run.hdr,
        )
        run.job.report(f"images {stage}", 1, 1)
    run.engines.release(VIDEO_ENCODER)
    return encoded


def reference_items(
    run: Run,
    stage: str,
    references: Sequence[ReferenceFile],
    divisor: int = 1,
    *,
    downscale: int = 1,
    temporal_scale: int = 1,
    attention_strength: float = 1.0,
    attention_mask: Array | None = None,
    tiling: TilingConfig | None = None,
) -> list[ConditioningItem]:
    """Reference videos as conditioning of a stage; the video encoder is released.

    Args:
        stage: its name, for progress.
        divisor: by what its height and width are smaller than the clip's.
        downscale, temporal_scale, attention_strength, attention_mask, tiling: see
            `reference_item`.
    """
    items: list[ConditioningItem] = []
    for index, reference in enumerate(references):
        run.job.report(f"references {stage}", index, len(references))
        items.append(
            reference_item(
                reference,
                run.engines.video_encoder(),
                run.pixels(divisor),
                run.shown(divisor),
                downscale=downscale,
                temporal_scale=temporal_scale,
                attention_strength=attention_strength,
                attention_mask=attention_mask,
                tiling=tiling,
                hdr=run.hdr,
            )
        )
        run.job.report(f"references {stage}", index + 1, len(references))
    run.engines.release(VIDEO_ENCODER)
    return items


def read_sound(
    path: Path,
    start_s: float = 0.0,
    max_duration_s: float | None = None,
    *,
    keep_channels: bool = False,
) -> Sound:
    """A window of a file's sound, `[2, N]` float32, and its own rate in Hz; mono is doubled, more
    than two channels are mixed down, with a warning.

    Args:
        keep_channels: it is only copied: 5.1 and 7.1 stay what they are.
    """
    waveform, rate = read_audio(path, start_s, max_duration_s)
    info = probe_audio(path)
    if keep_channels and info.layout.partition("(")[0] in LAYOUTS.values():
        return waveform, rate
    if info.channels > 2:
        warnings.warn(
            f"the sound of '{path}' has {info.channels} channels ({info.layout}): it is mixed down "
            "to two.",
            stacklevel=2,
        )
    return mixed_down(waveform, info.layout, rate), rate


def encode_sound(run: Run, sound: Sound) -> Array:
    """Latent of sound, as long as it is; the audio encoder is released."""
    run.job.report("encode audio", 0, 1)
    latent = run.engines.audio_encoder()(*sound)
    run.engines.release(AUDIO_ENCODER)
    run.job.report("encode audio", 1, 1)
    return latent


def encode_video(run: Run, pixels: NDArray[np.float32]) -> Array:
    """Latent of a clip `[1, 3, n, H, W]` in [-1, 1]; what goes beyond `8k+1` frames is dropped. It
    is encoded in tiles (spec/media_io.md §5.3); the encoder is released.
    """
    run.job.report("encode video", 0, 1)
    latent = run.engines.video_encoder().encode(pixels, TilingConfig.default())
    run.engines.release(VIDEO_ENCODER)
    run.job.report("encode video", 1, 1)
    return latent


def padded(frames: Array, factors: VideoScaleFactors) -> NDArray[np.float32]:
    """Frames `[n, H, W, 3]` filled up to what the encoder takes: sides by reflection, frames by the
    last one.
    """
    count, height, width = frames.shape[:3]
    missing = -(count - 1) % factors.time
    filled = resize_and_pad(
        frames, *rendered_size(height, width, math.lcm(factors.height, factors.width))
    )
    return np.concatenate([filled, np.repeat(filled[-1:], missing, axis=0)])


def centred(
    frames: Array,
    size: tuple[int, int],
    factors: VideoScaleFactors,
    outside: float | None = None,
) -> Array:
    """Frames `[n, H, W, C]` in the middle of larger ones, on the grid of latent cells; around them
    their edge goes on, or there is one value.

    Args:
        size: height and width of the result; that of the frames changes nothing.
    """
    spare = [big - small for big, small in zip(size, frames.shape[1:3], strict=True)]
    first = [
        space // 2 // cell * cell
        for space, cell in zip(spare, (factors.height, factors.width), strict=True)
    ]
    sides = ((0, 0), *((a, s - a) for a, s in zip(first, spare, strict=True)), (0, 0))
    if outside is None:
        return np.pad(frames, sides, mode="edge")
    return np.pad(frames, sides, constant_values=outside)


def fit_video(latent: Array, num_frames: int) -> Array:
    """Cut a latent `[B, C, F, H, W]` to `num_frames` latent frames, or append zeros."""
    missing = max(num_frames - latent.shape[2], 0)
    return np.pad(latent[:, :, :num_frames], ((0, 0), (0, 0), (0, missing), (0, 0), (0, 0)))
