"""Goldens of the torch-free numerics: schedules, tokens, conditioning, steps, loops, guidance.

No backend is involved, so both backends run the same code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ltx2rt.latents.conditioning import (
    ConditioningItem,
    GeneratedKeyframes,
    Keyframe,
    ReferenceAudio,
    ReferenceVideo,
    ReplaceLatent,
    TemporalRegion,
    apply_items,
    drop_appended,
    make_audio_state,
    make_video_state,
    mask_latent,
    subsample_indices,
)
from ltx2rt.latents.patchify import (
    audio_positions,
    patchify_audio,
    patchify_video,
    video_positions,
    video_token_bounds,
)
from ltx2rt.latents.shapes import AudioLatentShape, VideoLatentShape
from ltx2rt.sampling import schedules
from ltx2rt.sampling.samplers import add_noise, to_denoised, to_velocity
from tests.parity.golden import Case, Runner, Skip, handles
from tests.parity.latent_mask import LatentMask


@handles("json:schedulers")
def schedule_tables(case: Case, run: Runner) -> dict[str, Any]:
    return {
        f"{i}.{entry['scheduler']}.{entry.get('steps', '')}": (
            _schedule(entry),
            np.array(entry["sigmas"], np.float32),
        )
        for i, entry in enumerate(case.data)
    }


def _schedule(entry: dict[str, Any]) -> np.ndarray:
    options = dict(entry.get("kwargs", {}))
    match entry["scheduler"]:
        case "LTX2Scheduler":
            sizes = entry["latent_shape"]
            count = None if sizes is None else int(np.prod(sizes))
            return schedules.ltx2_sigmas(entry["steps"], count, **options)
        case "LinearQuadraticScheduler":
            if "threshold_noise" in options:
                options["threshold"] = options.pop("threshold_noise")
            return schedules.linear_quadratic_sigmas(entry["steps"], **options)
        case "BetaScheduler":
            return schedules.beta_sigmas(entry["steps"], **options)
        case "distilled":
            return schedules.sigma_table(schedules.DISTILLED)
        case "distilled_stage_2":
            return schedules.sigma_table(schedules.STAGE2_DISTILLED)
        case other:
            raise Skip(f"unknown scheduler {other}")


@handles("patchifiers")
def patchifiers(case: Case, run: Runner) -> dict[str, np.ndarray]:
    video, video_p2, audio = (case.inputs[k] for k in ("video", "video_p2", "audio"))
    shape = VideoLatentShape.from_sizes(video.shape)
    single = replace(shape, batch=1)
    sound = AudioLatentShape.from_sizes(audio.shape)
    one_sound = replace(sound, batch=1)
    out = {
        "video.tokens_p1": patchify_video(video),
        "video.bounds_p1": video_token_bounds(shape),
        "video.tokens_p2": patchify_video(video_p2, 2),
        "video.bounds_p2": video_token_bounds(VideoLatentShape.from_sizes(video_p2.shape), 2),
        "audio.tokens": patchify_audio(audio),
        "audio.bounds": audio_positions(sound),
        "audio.bounds_noncausal_shift3": audio_positions(one_sound, causal=False, shift=3),
        "audio.bounds_shift2": audio_positions(one_sound, shift=2),
        "video.positions_no_causal_fix": video_positions(single, 24.0, causal_fix=False),
    }
    for name in case.outputs:
        if name.startswith("video.positions_fps"):
            frame_rate = float(name.removeprefix("video.positions_fps"))
            out[name] = video_positions(single, frame_rate)
    return out


@handles("conditioning")
def conditioning(case: Case, run: Runner) -> dict[str, np.ndarray]:
    sizes = case.params["target"]
    if len(sizes) == 4:
        state = make_audio_state(AudioLatentShape.from_sizes(sizes))
    else:
        shape = VideoLatentShape.from_sizes(sizes)
        state = make_video_state(shape, case.params["fps"])
    state = apply_items(state, _items(case))
    noised = add_noise(state, case.inputs["noise"], case.params["noise_scale"])
    out = {
        "latent": state.latent,
        "clean_latent": state.clean,
        "denoise_mask": state.mask,
        "positions": state.positions,
        "attention_mask": state.attention_mask,
        "keyframes_mask": state.keyframes_mask,
        "noised_latent": noised.latent,
        "cleared_latent": drop_appended(noised).latent,
    }
    return {k: v for k, v in out.items() if v is not None}


def _items(case: Case) -> Iterator[ConditioningItem]:
    """Items of a case, recognised by its inputs and parameters."""
    inputs, params = case.inputs, case.params
    if "start" in params:
        yield TemporalRegion(start_s=params["start"], end_s=params["end"])
    elif "pixel_frame_indices" in params:
        yield GeneratedKeyframes(frame_indices=params["pixel_frame_indices"])
    elif "tokens" in inputs:
        yield ReferenceAudio(tokens=inputs["tokens"], positions=inputs["positions"])
    elif "latent" in inputs:
        yield LatentMask(latent=inputs["latent"], mask=inputs["mask"], strength=params["strength"])
    elif "ref" in inputs and "mask" in inputs:
        yield ReferenceVideo(latent=inputs["ref"], downscale=2, attention_strength=inputs["mask"])
        yield Keyframe(latent=inputs["image"], frame_index=8, attention_strength=0.5)
    elif "ref" in inputs:
        yield ReferenceVideo(latent=inputs["ref"], downscale=2)
        yield ReferenceVideo(latent=inputs["ref2"], temporal_scale=2, strength=0.8)
    else:
        for name, first, second in params["items"]:
            latent = _named_latent(inputs, name)
            if "clip" in inputs:
                yield Keyframe(latent=latent, frame_index=first, strength=second)
            else:
                yield ReplaceLatent(latent=latent, strength=first, latent_index=second)


def _named_latent(inputs: dict[str, np.ndarray], name: str) -> np.ndarray:
    """`image`, `image*0.5` or `clip (9 pixel frames)` to the scaled input tensor."""
    key, _, factor = name.partition(" ")[0].partition("*")
    return inputs[key] * np.float32(factor or 1.0)


@handles("helpers")
def helpers(case: Case, run: Runner) -> dict[str, np.ndarray]:
    inputs = case.inputs
    frames, height, width = case.params["latent"]
    shape = VideoLatentShape(num_frames=frames, height=height, width=width)
    mask = inputs["mask_video_u8"].astype(np.float32)
    x, v = inputs["x"], inputs["v"]
    out = {
        "mask_latent": mask_latent(mask, shape),
        "denoised_tokens": to_denoised(x, v, inputs["sigma_tokens"]),
    }
    for name in case.outputs:
        kind, _, value = name.rpartition("_")
        if kind == "velocity":
            out[name] = to_velocity(x, v, np.float32(value))  # v stands for x0
        elif kind == "subsample":
            out[name] = np.array(subsample_indices(mask.shape[2], int(value)))
    return out
