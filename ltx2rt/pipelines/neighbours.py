"""Clips that lie before or after the one that is made: its first or last frames and their sound are
theirs, fixed in every stage, and the rest goes on from them (spec/conditioning.md §2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx2rt.bundle.source import ModelFacts
from ltx2rt.config import GenerationConfig, NeighbourClip
from ltx2rt.engine import U8, Array
from ltx2rt.errors import BundleError, Field, Problem
from ltx2rt.latents.conditioning import ConditioningItem, ReplaceAudio, ReplaceLatent
from ltx2rt.latents.duration import AutoDuration
from ltx2rt.latents.shapes import AudioLatentShape
from ltx2rt.latents.tiling import TilingConfig
from ltx2rt.media.image import fill, to_vae_input
from ltx2rt.media.reader import count_frames, iterate_video_frames, probe_video
from ltx2rt.media.sound import mixed_down, probe_audio, read_padded_audio
from ltx2rt.names import AUDIO_ENCODER, VIDEO_ENCODER
from ltx2rt.pipelines.generation import Run

#: pixel frames before a part that does not begin the clip: the encoder looks back at them
LEAD = 9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """The frames of a neighbour that the clip shares with it, and their sound.

    Attributes:
        frames: `[n, H, W, 3]` uint8, at the clip's frame rate.
        sound: `[2, N]` float32 and its rate in Hz; None without.
    """

    frames: U8
    sound: tuple[NDArray[np.float32], int] | None


def neighbour_items(run: Run, divisors: Mapping[str, int]) -> dict[str, list[ConditioningItem]]:
    """The neighbours as conditioning of each stage's video; that of the sound goes to
    `run.audio_items`. Empty lists where the request names none; encoders are released.

    Args:
        divisors: stage name -> by what its height and width are smaller than the clip's.
    """
    items: dict[str, list[ConditioningItem]] = {stage: [] for stage in divisors}
    config = run.config
    for clip, is_end in ((config.after, False), (config.before, True)):
        if clip is None:
            continue
        part = shared_part(clip, config.frame_rate, is_end=is_end)
        for stage, divisor in divisors.items():
            run.job.report(f"neighbours {stage}", 0, 1)
            items[stage].append(_video_item(run, part.frames, divisor, is_end=is_end))
            run.job.report(f"neighbours {stage}", 1, 1)
        if part.sound is not None and config.audio is None and config.with_audio:
            run.audio_items.append(_audio_item(run, part, is_end=is_end))
    run.engines.release(VIDEO_ENCODER, AUDIO_ENCODER)
    return items


def _video_item(run: Run, frames: U8, divisor: int, *, is_end: bool) -> ConditioningItem:
    canvas, shown = run.pixels(divisor), run.shown(divisor)
    lead = LEAD if is_end else 0
    fitted = [fill(frame[None], canvas.height, canvas.width, shown) for frame in frames]
    pixels = to_vae_input(np.concatenate([*repeat(fitted[0], lead), *fitted]))
    latent = run.engines.video_encoder().encode(pixels, TilingConfig.default())
    if not is_end:
        return ReplaceLatent(latent=latent)
    kept = len(frames) // run.engines.scale_factors.time
    first = run.video(divisor).shape.num_frames - kept
    return ReplaceLatent(latent=latent[:, :, -kept:], latent_index=first)


def _audio_item(run: Run, part: Part, *, is_end: bool) -> ConditioningItem:
    assert part.sound is not None
    wave, rate = part.sound
    steps = AudioLatentShape.from_duration(len(part.frames) / run.config.frame_rate).num_frames
    lead = rate // 2 if is_end else 0
    latent: Array = run.engines.audio_encoder()(np.pad(wave, ((0, 0), (lead, 0))), rate)
    if not is_end:
        latent = latent[:, :, :steps]
        return ReplaceAudio(latent=latent)
    latent = latent[:, :, -steps:]
    first = run.audio().shape.num_frames - latent.shape[2]
    return ReplaceAudio(latent=latent, first_step=first)


def shared_part(clip: NeighbourClip, frame_rate: float, *, is_end: bool) -> Part:
    """What the clip that is made shares with a neighbour: the last frames of the one before it, the
    first of the one after it.

    Raises:
        MediaError: it cannot be read.
    """
    count = clip.shared(is_end=is_end)
    first = 0 if is_end else count_frames(clip.path, frame_rate) - count
    frames = np.stack(list(iterate_video_frames(clip.path, count, frame_rate, first)))
    sound = None
    if probe_video(clip.path).has_audio:
        sound = stereo(clip.path, first / frame_rate, count / frame_rate)
    return Part(frames=frames, sound=sound)


def stereo(path: Path, start_s: float, seconds: float) -> tuple[NDArray[np.float32], int]:
    """A window of a file's sound, `[2, N]` and as long as asked for; silence where it has ended."""
    wave, rate = read_padded_audio(path, start_s, seconds)
    length = wave.shape[1]
    wave = mixed_down(wave, probe_audio(path).layout, rate)[:, :length]
    return np.pad(wave, ((0, 0), (0, length - wave.shape[1]))), rate


def neighbour_problems(config: GenerationConfig, source: ModelFacts) -> list[str]:
    """Neighbours that are too short, or leave nothing to make.

    Raises:
        BundleError: there is no encoder for them.
        MediaError: one cannot be read.
    """
    ends = {False: config.after, True: config.before}
    clips = {is_end: clip for is_end, clip in ends.items() if clip is not None}
    if not clips:
        return []
    needed = [VIDEO_ENCODER]
    if any(probe_video(clip.path).has_audio for clip in clips.values()):
        needed.append(AUDIO_ENCODER)
    if missing := [name for name in needed if not source.has(name)]:
        raise BundleError(
            f"a clip to go on from needs {', '.join(missing)}, which this bundle does not hold; "
            "build it again with all components."
        )
    problems: list[str] = []
    for is_end, clip in clips.items():
        found, shared = count_frames(clip.path, config.frame_rate), clip.shared(is_end=is_end)
        if found < shared:
            problems.append(
                f"'{clip.path}' has {found} frames at {config.frame_rate:g} frames per second, "
                f"fewer than the {shared} that are to be shared with it; say how many with "
                f"'{clip.path}@N'"
            )
    total = sum(clip.shared(is_end=is_end) for is_end, clip in clips.items())
    if isinstance(config.num_frames, AutoDuration) and config.audio is None:
        problems.append(Problem("a clip to go on from needs a length: give ", Field("num_frames")))
    elif isinstance(config.num_frames, int) and config.num_frames <= total:
        problems.append(
            Problem(
                Field("num_frames"),
                f"={config.num_frames} counts the {total} frames that are shared with the clips "
                "before and after; ask for more than those",
            )
        )
    return problems
