"""Denoisers: which forward passes make one prediction (spec/sampling.md §6 and §7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ltx2rt.components.text_encoder import TextContext
from ltx2rt.components.transformer import Pass as ForwardPass
from ltx2rt.components.transformer import Transformer
from ltx2rt.components.transformer_inputs import AttentionKind, ModalityInput, Perturbations
from ltx2rt.engine import Array
from ltx2rt.errors import OptionError
from ltx2rt.latents.state import LatentState
from ltx2rt.latents.streams import Streams
from ltx2rt.sampling.guidance import GuiderParams, GuiderSchedule, guided, running_difference
from ltx2rt.sampling.samplers import Denoise, Sigma, modality_sigma, to_denoised, token_timesteps

SELF_ATTENTION: dict[str, AttentionKind] = {"video": "video_self", "audio": "audio_self"}

#: (modality, pass name -> clean estimate) of every evaluation, for parity tests
OnPasses = Callable[[str, Mapping[str, Array]], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Guidance:
    """How a stage is guided.

    Attributes:
        video, audio: parameters of each modality, looked up by sigma.
        negative_video, negative_audio: contexts `[1, S, C]` of the negative prompt; a modality
            without one sees its positive context in that pass.
        max_batch_size: passes that run together; the result does not depend on it.
    """

    video: GuiderSchedule
    audio: GuiderSchedule
    negative_video: Array | None = None
    negative_audio: Array | None = None
    max_batch_size: int = 1


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass: `cond`, `uncond`, `ptb` or `mod`."""

    name: str
    is_negative: bool = False
    perturbations: Perturbations = field(default_factory=Perturbations)


def passes(params: Mapping[str, GuiderParams]) -> list[Pass]:
    """The passes that the given modalities' parameters need together, in the official order."""
    needed = [Pass("cond")]
    if any(p.needs_uncond for p in params.values()):
        needed.append(Pass("uncond", is_negative=True))
    perturbed = Perturbations()
    for modality, p in params.items():
        if p.needs_perturbed:
            perturbed = perturbed.and_skip(SELF_ATTENTION[modality], p.stg_blocks)
    if any(p.needs_perturbed for p in params.values()):
        needed.append(Pass("ptb", perturbations=perturbed))
    if any(p.needs_isolated for p in params.values()):
        isolated = Perturbations().and_skip("audio_to_video").and_skip("video_to_audio")
        needed.append(Pass("mod", perturbations=isolated))
    return needed


def simple_denoise(
    transformer: Transformer, states: Streams[LatentState], context: TextContext
) -> Denoise:
    """One forward pass with the positive contexts: distilled stages and every refinement."""
    contexts = Streams(context.video, context.audio)

    def denoise(latents: Streams[Array], sigma: Sigma, _index: int) -> Streams[Array]:
        inputs = states.map(
            lambda state, latent, text: modality_input(state, latent, sigma, text),
            latents,
            contexts,
        )
        return inputs.map(_clean, Streams(*transformer(*inputs)))

    return denoise


class GuidedDenoiser:
    """A `Denoise` that combines several passes a step. Make a new one for every stage.

    States are of batch 1. With `skip_step`, a modality that skips a step keeps its last
    prediction; it stays visible to the other one. Steps that both skip run no pass.

    Args:
        context: contexts of the positive prompt, `[1, S, C]` each.
        on_passes: gets every pass's estimate.

    Attributes:
        unconditional: modality -> its last estimate with the negative prompt (CFG++).
    """

    def __init__(
        self,
        transformer: Transformer,
        states: Streams[LatentState],
        context: TextContext,
        guidance: Guidance,
        on_passes: OnPasses | None = None,
    ) -> None:
        self._transformer = transformer
        self._states = dict(states.items())
        self._positive = {"video": context.video, "audio": context.audio}
        self._negative = {"video": guidance.negative_video, "audio": guidance.negative_audio}
        self._schedules = {"video": guidance.video, "audio": guidance.audio}
        self._max_batch_size = guidance.max_batch_size
        self._on_passes = on_passes
        self._contexts: dict[tuple[str, tuple[bool, ...]], Array] = {}
        self._last: dict[str, Array] = {}
        self._differences: dict[str, NDArray[np.float32]] = {}
        self.unconditional: dict[str, Array] = {}

    def __call__(self, latents: Streams[Array], sigma: Sigma, index: int) -> Streams[Array]:
        """Predict; see `Denoise`.

        Raises:
            OptionError: a modality needs a negative prompt that was not given.
        """
        params = {m: self._schedules[m].at(float(sigma)) for m, _ in latents.items()}
        active = {m: p for m, p in params.items() if not p.skips(index)}
        if active:
            inputs = {
                m: self._input(m, latent, sigma, skipped=m not in active)
                for m, latent in latents.items()
            }
            predictions = self._predict(inputs, active)
            for modality, found in predictions.items():
                if self._on_passes is not None:
                    self._on_passes(modality, found)
                if modality not in active:
                    continue
                self._last[modality] = self._combine(modality, active[modality], found)
        return latents.named(lambda modality, _: self._last[modality])

    def single_passes(
        self, latents: Streams[Array], sigma: Sigma
    ) -> tuple[Mapping[str, GuiderParams], list[str], list[ForwardPass]]:
        """What the passes of a step are, one by one, for whoever runs and combines them elsewhere:
        guidance of each modality, the names of the passes, and what the transformer takes.

        Raises:
            OptionError: see `__call__`.
        """
        params = {m: self._schedules[m].at(float(sigma)) for m, _ in latents.items()}
        inputs = {m: self._input(m, x, sigma, skipped=False) for m, x in latents.items()}
        needed = passes(params)
        return params, [p.name for p in needed], [self._asked(inputs, [p], params) for p in needed]

    def _asked(
        self,
        inputs: Mapping[str, ModalityInput],
        chunk: Sequence[Pass],
        active: Mapping[str, GuiderParams],
    ) -> ForwardPass:
        batches = {m: self._batch(m, one, chunk, active) for m, one in inputs.items()}
        return batches.get("video"), batches.get("audio"), _stacked(chunk)

    def _combine(self, modality: str, params: GuiderParams, found: Mapping[str, Array]) -> Array:
        """The guided estimate of a modality from those of its passes."""
        difference = None
        if "uncond" in found:
            self.unconditional[modality] = found["uncond"]
            if params.cfg_mode == "apg":
                difference = running_difference(
                    params, found["cond"], found["uncond"], self._differences.get(modality)
                )
                self._differences[modality] = difference
        return guided(
            params,
            found["cond"],
            uncond=found.get("uncond"),
            perturbed=found.get("ptb"),
            isolated=found.get("mod"),
            difference=difference,
        )

    def _input(self, modality: str, latent: Array, sigma: Sigma, *, skipped: bool) -> ModalityInput:
        text = self._positive[modality]
        made = modality_input(self._states[modality], latent, sigma, text)
        return replace(made, enabled=False) if skipped else made

    def _predict(
        self, inputs: Mapping[str, ModalityInput], active: Mapping[str, GuiderParams]
    ) -> dict[str, dict[str, Array]]:
        """Clean estimates: modality -> pass name -> `[1, T, D]`."""
        found: dict[str, dict[str, Array]] = {modality: {} for modality in inputs}
        chunks = list(_chunks(passes(active), self._max_batch_size))
        asked = [self._asked(inputs, chunk, active) for chunk in chunks]
        for chunk, velocities in zip(chunks, self._transformer.passes(asked), strict=True):
            for modality, velocity in Streams(*velocities).items():
                for row, item in enumerate(chunk):
                    clean = _clean(inputs[modality], velocity[row : row + 1])
                    found[modality][item.name] = clean
        return found

    def _batch(
        self,
        modality: str,
        one: ModalityInput,
        chunk: Sequence[Pass],
        active: Mapping[str, GuiderParams],
    ) -> ModalityInput:
        """One stream of several passes: everything but the context is the same array, repeated as
        a view.
        """
        positive, negative = self._positive[modality], self._negative[modality]
        if negative is None:
            if modality in active and active[modality].needs_uncond:
                raise OptionError(
                    f"cfg_scale={active[modality].cfg_scale:g} of the {modality} needs a negative "
                    "prompt; give one, or set cfg_scale to 1."
                )
            negative = positive
        signs = tuple(p.is_negative for p in chunk)
        if (modality, signs) not in self._contexts:  # the same array at every step of the stage
            texts = [negative if sign else positive for sign in signs]
            same = all(t is texts[0] for t in texts)
            self._contexts[modality, signs] = (
                _repeat(texts[0], len(texts)) if same else np.concatenate(texts)
            )
        count, context = len(chunk), self._contexts[modality, signs]
        if count == 1:
            return replace(one, context=context)
        return replace(
            one,
            latent=_repeat(one.latent, count),
            sigma=_repeat(one.sigma, count),
            timesteps=_repeat(one.timesteps, count),
            positions=_repeat(one.positions, count),
            context=context,
            keyframes_mask=(
                None if one.keyframes_mask is None else _repeat(one.keyframes_mask, count)
            ),
        )


def modality_input(
    state: LatentState, latent: Array, sigma: Sigma, context: Array
) -> ModalityInput:
    """The transformer's view of a state at one noise level."""
    batch = latent.shape[0]
    return ModalityInput(
        latent=latent,
        sigma=np.full((batch,), modality_sigma(state, sigma), np.float32),
        timesteps=token_timesteps(state, sigma),
        positions=state.positions,
        context=context,
        attention_mask=state.attention_mask,
        keyframes_mask=state.keyframes_mask,
    )


def _clean(given: ModalityInput, velocity: Array) -> Array:
    return to_denoised(given.latent, velocity, given.timesteps)


def _chunks(items: Sequence[Pass], size: int) -> Iterator[Sequence[Pass]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def pass_counts(
    guidance: Guidance, modalities: Sequence[str], sigmas: NDArray[np.float32]
) -> set[int]:
    """How many passes run together, at one step or another of a guided stage.

    Args:
        modalities: that the stage has.
        sigmas: its noise levels, the last one of which is not evaluated.
    """
    schedules = {"video": guidance.video, "audio": guidance.audio}
    counts: set[int] = set()
    for index, sigma in enumerate(sigmas[:-1]):
        params = {m: schedules[m].at(float(sigma)) for m in modalities}
        active = {m: p for m, p in params.items() if not p.skips(index)}
        if active:
            counts |= {len(c) for c in _chunks(passes(active), guidance.max_batch_size)}
    return counts


def step_costs(
    guidance: Guidance | None,
    modalities: Sequence[str],
    sigmas: NDArray[np.float32],
    *,
    midpoints: bool = False,
) -> list[int]:
    """Passes of the model in each step of a stage: what its steps cost beside each other.

    Args:
        guidance: None: one pass an evaluation.
        modalities: that the stage has.
        sigmas: its noise levels.
        midpoints: steps are evaluated in their middle too, which skips nothing (res_2s).
    """

    def evaluation(sigma: float, index: int) -> int:
        if guidance is None:
            return 1
        schedules = {"video": guidance.video, "audio": guidance.audio}
        params = {m: schedules[m].at(sigma) for m in modalities}
        active = {m: p for m, p in params.items() if not p.skips(index)}
        return len(passes(active)) if active else 0

    return [
        evaluation(float(sigma), index)
        + (evaluation(float(np.sqrt(sigma * following)), 0) if midpoints else 0)
        for index, (sigma, following) in enumerate(pairwise(sigmas))
    ]


def _stacked(chunk: Sequence[Pass]) -> Perturbations:
    """The perturbations of stacked passes: each holds for its own sample only."""
    if len(chunk) == 1:
        return chunk[0].perturbations
    stacked = Perturbations()
    for row, item in enumerate(chunk):
        for skip in item.perturbations.skips:
            stacked = stacked.and_skip(skip.kind, skip.blocks, (row,))
    return stacked


def _repeat(array: Array, count: int) -> Array:
    """`[1, ...]` seen as `[count, ...]`, without a copy."""
    return np.broadcast_to(array, (count, *array.shape[1:]))
