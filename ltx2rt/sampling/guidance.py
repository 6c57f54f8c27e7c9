"""Guidance: which passes to run, and how to combine their clean estimates (spec/sampling.md §7)."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ltx2rt.engine import F32, Array
from ltx2rt.errors import Field, OptionError, Problem
from ltx2rt.field_types import settle_types
from ltx2rt.weights.floats import cast

#: how the difference to the negative prompt is used: as it is, against the part of the negative
#: estimate that is parallel to the positive one, or projected and bounded
CfgMode = Literal["cfg", "cfg_star", "apg"]
CFG_MODES: tuple[CfgMode, ...] = typing.get_args(CfgMode)

_APG = ("apg_eta", "apg_norm_threshold", "apg_momentum")
_NUMBERS = ("cfg_scale", "stg_scale", "rescale_scale", "modality_scale", *_APG)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuiderParams:
    """Guidance of one modality.

    Attributes:
        cfg_scale: pull away from the negative prompt; 1 switches it off.
        stg_scale: pull away from the prediction with perturbed self-attention; 0 is off.
        stg_blocks: transformer blocks that are perturbed.
        rescale_scale: share of the result that is rescaled to the deviation of the plain
            prediction; 0 is off.
        modality_scale: pull away from the prediction without the other modality; 1 is off.
        skip_step: run the model only every `skip_step + 1` steps; 0 runs it always.
        cfg_mode: `cfg`, `cfg_star` or `apg` (spec/sampling.md §7.5); scaled by `cfg_scale - 1`.
        apg_eta: APG: share that is kept of the difference's part along the prediction.
        apg_norm_threshold: APG: largest 2-norm of the difference; 0 is off.
        apg_momentum: APG: weight of the running sum of the differences of earlier steps.
    """

    cfg_scale: float = 1.0
    stg_scale: float = 0.0
    stg_blocks: tuple[int, ...] = ()
    rescale_scale: float = 0.0
    modality_scale: float = 1.0
    skip_step: int = 0
    cfg_mode: CfgMode = "cfg"
    apg_eta: float = 1.0
    apg_norm_threshold: float = 0.0
    apg_momentum: float = 0.0

    def __post_init__(self) -> None:
        settle_types(self)
        problems = [
            Problem(Field(name), f"={value} is not a number")
            for name in _NUMBERS
            if not math.isfinite(value := getattr(self, name))
        ]
        if self.cfg_mode not in CFG_MODES:
            problems.append(
                Problem(Field("cfg_mode"), f"={self.cfg_mode!r}; allowed: {', '.join(CFG_MODES)}")
            )
        elif self.cfg_mode != "apg":
            unused = {"apg_eta": 1.0, "apg_norm_threshold": 0.0, "apg_momentum": 0.0}
            problems += [
                Problem(Field(name), f" is for cfg_mode='apg', not {self.cfg_mode!r}")
                for name, off in unused.items()
                if getattr(self, name) != off
            ]
        if self.apg_norm_threshold < 0:
            problems.append(
                Problem(
                    Field("apg_norm_threshold"), f"={self.apg_norm_threshold} is negative; 0 is off"
                )
            )
        if abs(self.apg_momentum) >= 1:
            problems.append(
                Problem(Field("apg_momentum"), f"={self.apg_momentum} is not between -1 and 1")
            )
        if self.skip_step < 0:
            problems.append(
                Problem(Field("skip_step"), f"={self.skip_step} is negative; 0 runs every step")
            )
        if problems:
            raise OptionError("guidance options", problems)

    @property
    def needs_uncond(self) -> bool:
        return not math.isclose(self.cfg_scale, 1.0)

    @property
    def needs_perturbed(self) -> bool:
        return not math.isclose(self.stg_scale, 0.0)

    @property
    def needs_isolated(self) -> bool:
        return not math.isclose(self.modality_scale, 1.0)

    def skips(self, step_index: int) -> bool:
        """Whether this modality's prediction is reused at a step instead of computed."""
        return self.skip_step > 0 and step_index % (self.skip_step + 1) != 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GuiderSchedule:
    """Parameters looked up by sigma: `bins` maps upper bounds to parameters."""

    bins: Mapping[float, GuiderParams] = field(default_factory=lambda: {1.0: GuiderParams()})

    def __post_init__(self) -> None:
        settle_types(self)
        if not self.bins:
            raise OptionError("A guider schedule needs at least one bin.")
        wrong = [bound for bound in self.bins if not 0 < bound <= 1]
        if wrong:
            raise OptionError(
                f"A guider schedule's bins are upper bounds of sigma in (0, 1], found {wrong}."
            )

    @property
    def needs_uncond(self) -> bool:
        return any(p.needs_uncond for p in self.bins.values())

    def at(self, sigma: float) -> GuiderParams:
        """Parameters of the smallest bound that is not below `sigma`, else of the largest."""
        fitting = [bound for bound in self.bins if bound >= sigma]
        return self.bins[min(fitting) if fitting else max(self.bins)]


def default_guiders(stg_block: int) -> tuple[GuiderParams, GuiderParams]:
    """Video and audio guidance of the guided pipelines; the perturbed block is a fact of the
    model version.
    """
    blocks = (stg_block,)
    video = GuiderParams(
        cfg_scale=3.0, stg_scale=1.0, stg_blocks=blocks, rescale_scale=0.7, modality_scale=3.0
    )
    audio = GuiderParams(
        cfg_scale=7.0, stg_scale=1.0, stg_blocks=blocks, rescale_scale=0.7, modality_scale=3.0
    )
    return video, audio


HQ_VIDEO_GUIDER = GuiderParams(cfg_scale=3.0, rescale_scale=0.45, modality_scale=3.0)
HQ_AUDIO_GUIDER = GuiderParams(cfg_scale=7.0, rescale_scale=1.0, modality_scale=3.0)


def guided(
    params: GuiderParams,
    cond: Array,
    *,
    uncond: Array | None = None,
    perturbed: Array | None = None,
    isolated: Array | None = None,
    difference: Array | None = None,
    dtype: str = "float32",
) -> Array:
    """Combine one modality's clean estimates.

    Args:
        params: this modality's guidance.
        cond: `[B, T, D]` with the prompt, nothing perturbed.
        uncond: with the negative prompt. A pass that did not run is None; one that ran only for
            the other modality has weight 0.
        perturbed: with perturbed self-attention.
        isolated: without cross-modality attention.
        difference: what APG projects instead of `cond - uncond` (see `running_difference`).
        dtype: type the result is rounded to.

    Raises:
        OptionError: a pass that `params` needs is missing.
    """
    c = cond.astype(np.float32, copy=False)
    result = c
    if params.needs_uncond and uncond is None:
        raise OptionError("Guidance needs the uncond prediction, which was not computed.")
    if uncond is not None:
        result = result + _cfg(params, c, uncond.astype(np.float32, copy=False), difference)
    for name, needed, scale, other in (
        ("perturbed", params.needs_perturbed, params.stg_scale, perturbed),
        ("isolated", params.needs_isolated, params.modality_scale - 1.0, isolated),
    ):
        if needed and other is None:
            raise OptionError(f"Guidance needs the {name} prediction, which was not computed.")
        if other is not None:
            result = result + np.float32(scale) * (c - other.astype(np.float32, copy=False))
    if params.rescale_scale != 0:
        factor = _deviation(c) / _deviation(result)
        rescale = np.float32(params.rescale_scale)
        result = result * (rescale * factor + np.float32(1 - params.rescale_scale))
    return cast(result, dtype)


def _cfg(params: GuiderParams, cond: F32, uncond: F32, difference: Array | None) -> F32:
    """The correction of `cond` by the negative prompt."""
    if params.cfg_mode == "cfg_star":
        return cfg_star_delta(params.cfg_scale, cond, uncond)
    if params.cfg_mode == "cfg":
        return cfg_delta(params.cfg_scale, cond, uncond)
    used = cond - uncond if difference is None else difference
    projected = _projected(used, cond, params.apg_eta, params.apg_norm_threshold)
    return projected * np.float32(params.cfg_scale - 1.0)


def running_difference(params: GuiderParams, cond: Array, uncond: Array, before: F32 | None) -> F32:
    """What stateful APG projects: `cond - uncond` plus the momentum of the steps before."""
    difference: F32 = cond.astype(np.float32, copy=False) - uncond.astype(np.float32, copy=False)
    if before is None or not params.apg_momentum:
        return difference
    return np.float32(params.apg_momentum) * before + difference


def _deviation(values: F32) -> np.float32:
    """Unbiased standard deviation over all elements, accumulated in float64."""
    return np.float32(values.std(ddof=1, dtype=np.float64))


def cfg_delta(scale: float, cond: F32, uncond: F32) -> F32:
    """Classifier-free guidance as a correction of `cond`."""
    return np.float32(scale - 1.0) * (cond - uncond)


def cfg_star_delta(scale: float, cond: F32, uncond: F32) -> F32:
    """CFG against the part of `uncond` that is parallel to `cond`."""
    coefficient = projection_coefficient(cond, uncond)
    return np.float32(scale - 1.0) * (cond - _per_item(coefficient, cond) * uncond)


def _projected(difference: F32, cond: F32, eta: float, norm_threshold: float) -> F32:
    """Adaptive projected guidance: bound the difference, damp its part parallel to `cond`."""
    bounded = _limit_norm(difference, norm_threshold)
    parallel = _per_item(projection_coefficient(bounded, cond), cond) * cond
    projected: F32 = parallel * np.float32(eta) + (bounded - parallel)
    return projected


def projection_coefficient(values: F32, onto: F32) -> F32:
    """`[B, 1]`: length of `values` along `onto`, over all elements of a batch item."""
    a = values.reshape(values.shape[0], -1)
    b = onto.reshape(onto.shape[0], -1)
    dot = (a * b).sum(axis=1, keepdims=True)
    square = (b * b).sum(axis=1, keepdims=True)
    coefficient: F32 = dot / (square + np.float32(1e-8))
    return coefficient


def _per_item(coefficient: F32, like: F32) -> F32:
    return coefficient.reshape(-1, *([1] * (like.ndim - 1)))


def _limit_norm(values: F32, threshold: float) -> F32:
    """Scale so that the 2-norm over the last three dimensions is at most `threshold` (0: off)."""
    if threshold <= 0:
        return values
    axes = tuple(range(max(0, values.ndim - 3), values.ndim))
    norm = np.sqrt((values * values).sum(axis=axes, keepdims=True))
    with np.errstate(divide="ignore"):
        limited: F32 = values * np.minimum(np.float32(1), np.float32(threshold) / norm)
    return limited
