"""Goldens of steps, sampling loops and guidance. No backend is involved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ltx2rt.latents.shapes import AudioLatentShape, VideoLatentShape
from ltx2rt.latents.state import LatentState, make_audio_state, make_video_state
from ltx2rt.latents.streams import Streams
from ltx2rt.sampling import guidance
from ltx2rt.sampling.res_2s import (
    Res2s,
    normalise_noise,
    res_2s_coefficients,
    sample_res_2s,
    sde_coefficients,
    sde_step,
)
from ltx2rt.sampling.samplers import (
    ancestral_step,
    cfg_pp_step,
    euler_step,
    sample_euler,
    sample_euler_ancestral,
    sample_euler_cfg_pp,
    sample_gradient_estimation,
)
from tests.parity.golden import Case, Runner, handles

Array = np.ndarray


@handles("samplers")
def samplers(case: Case, run: Runner) -> dict[str, Array]:
    if "raw" in case.inputs:
        return {"noise": normalise_noise(case.inputs["raw"])}
    return _loop(case)


def _loop(case: Case) -> dict[str, Array]:
    """A full loop with the closed-form denoiser and the stored noise, recognised by parameters."""
    inputs, params = case.inputs, case.params
    started = _states(case)
    sigmas = inputs["sigmas"]
    noises = (inputs[k] for k in sorted(inputs) if k.startswith("noise."))
    unconditional: dict[str, Array] = {}

    def draw(shape: tuple[int, ...]) -> Array:
        noise = next(noises)
        assert noise.shape == shape
        return noise

    def denoise(latents: Streams[Array], sigma: Any, step_index: int) -> Streams[Array]:
        level = np.float32(sigma)

        def predict(modality: str, x: Array) -> Array:
            target = inputs[f"{modality}.target"]
            x0 = np.float32(0.6) * x * (1 - level) + np.float32(0.3) * np.tanh(x)
            x0 = x0 + np.float32(0.1) * target
            unconditional[modality] = np.float32(0.5) * x0
            return x0

        return latents.named(predict)

    if "legacy_mode" in params:
        states = sample_res_2s(
            denoise,
            started,
            sigmas,
            draw,
            draw,
            Res2s(
                eta=params["eta"],
                refine_anchor=params["bongmath"],
                per_token_noise=not params["legacy_mode"],
                dtype="float32",
            ),
        )
    elif "ge_gamma" in params:
        states = sample_gradient_estimation(denoise, started, sigmas, gamma=params["ge_gamma"])
    elif "cfg_pp" in case.name:  # its parameters equal the ancestral loop's
        states = sample_euler_cfg_pp(
            denoise,
            unconditional.__getitem__,
            started,
            sigmas,
            draw,
            eta=params["eta"],
            s_noise=params["s_noise"],
        )
    elif "eta" in params:
        states = sample_euler_ancestral(
            denoise, started, sigmas, draw, eta=params["eta"], s_noise=params["s_noise"]
        )
    else:
        states = sample_euler(denoise, started, sigmas)
    return {name: state.latent for name, state in states.items()}


def _states(case: Case) -> Streams[LatentState]:
    inputs = case.inputs
    video_tokens, audio_tokens = (inputs[f"{m}.latent"].shape[1] for m in ("video", "audio"))
    fresh = {
        "video": make_video_state(
            VideoLatentShape(num_frames=1, height=1, width=video_tokens), 24.0
        ),
        "audio": make_audio_state(AudioLatentShape(num_frames=audio_tokens)),
    }
    return Streams(
        *(
            replace(
                state,
                latent=inputs[f"{m}.latent"],
                clean=inputs[f"{m}.clean"],
                mask=inputs[f"{m}.mask"],
            )
            for m, state in fresh.items()
        )
    )


@handles("diffusion_steps")
def diffusion_steps(case: Case, run: Runner) -> dict[str, Array]:
    x, d, u, noise, sigmas = (
        case.inputs[k] for k in ("sample", "denoised", "uncond_denoised", "noise", "sigmas")
    )
    out: dict[str, Array] = {}
    for name in case.outputs:
        if match := re.fullmatch(r"coef\.res2s_sde\.(\d+)\.eta([\d.]+)", name):
            sigma_next = np.float32(sigmas[int(match[1]) + 1])
            out[name] = np.array(sde_coefficients(sigma_next, float(match[2])), np.float32)
            continue
        kind, _, index = name.rpartition(".")
        s, t = (np.float32(v) for v in sigmas[int(index) : int(index) + 2])
        step, _, options = kind.partition("_")
        numbers = [float(v) for v in re.findall(r"[\d.]+", options)]
        match step:
            case "euler":
                out[name] = euler_step(x, d, s, t)
            case "ancestral":
                out[name] = ancestral_step(x, d, s, t, noise, eta=numbers[0], s_noise=numbers[1])
            case "cfgpp":
                out[name] = cfg_pp_step(x, d, u, s, t, noise, eta=numbers[0], s_noise=numbers[1])
            case "res2s":
                out[name] = sde_step(x, d, s, t, noise, numbers[0])
    return out


@handles("guiders")
def guiders(case: Case, run: Runner) -> dict[str, Array]:
    cond, uncond, perturbed, isolated = (
        case.inputs[k] for k in ("cond", "uncond", "perturbed", "modality")
    )
    c, u, p = cond[:1], uncond[:1], perturbed[:1]
    out = {"projection_coef": guidance.projection_coefficient(cond, uncond)}
    for name, options in case.params.items():
        match options["kind"]:
            case "CFGGuider":
                out[name] = guidance.cfg_delta(options["scale"], cond, uncond)
            case "CFGStarRescalingGuider":
                out[name] = guidance.cfg_star_delta(options["scale"], c, u)
            case "STGGuider":
                params = guidance.GuiderParams(stg_scale=options["scale"])
                out[name] = guidance.guided(params, cond, perturbed=perturbed) - cond
            case "LtxAPGGuider":
                params = _apg(options["scale"], options)
                out[name] = guidance.guided(params, c, uncond=u) - c
            case "LegacyStatefulAPGGuider":
                params = _apg(options["scale"] + 1, options)  # its scale is that of the correction
                first = guidance.running_difference(params, c, u, None)
                second = guidance.running_difference(params, c, p, first)
                out[name] = guidance.guided(params, c, uncond=u, difference=first) - c
                out["apg_stateful_step1"] = (
                    guidance.guided(params, c, uncond=p, difference=second) - c
                )
            case "MultiModalGuider":
                params = guidance.GuiderParams(**{k: v for k, v in options.items() if k != "kind"})
                out[name] = guidance.guided(
                    params, cond, uncond=uncond, perturbed=perturbed, isolated=isolated
                )
    return out


def _apg(scale: float, options: Mapping[str, Any]) -> guidance.GuiderParams:
    return guidance.GuiderParams(
        cfg_scale=scale,
        cfg_mode="apg",
        apg_eta=options["eta"],
        apg_norm_threshold=options["norm_threshold"],
        apg_momentum=options.get("momentum", 0.0),
    )


@handles("json:res2s_coefficients")
def res_2s_table(case: Case, run: Runner) -> dict[str, Any]:
    return {f"h={h}": (np.array(res_2s_coefficients(h)), np.array(rest)) for h, *rest in case.data}


@handles("json:guider_schedule")
def guider_schedule(case: Case, run: Runner) -> dict[str, Any]:
    bins = {float(k): guidance.GuiderParams(cfg_scale=v) for k, v in case.data["bins"].items()}
    schedule = guidance.GuiderSchedule(bins=bins)
    lookups, skips = case.data["lookups"], case.data["skip_step"]
    return {
        "lookups": (
            np.array([schedule.at(sigma).cfg_scale for sigma, _ in lookups]),
            np.array([scale for _, scale in lookups]),
        ),
        "skip_step": (
            np.array([guidance.GuiderParams(skip_step=n).skips(step) for n, step, _ in skips]),
            np.array([skipped for *_, skipped in skips]),
        ),
    }
