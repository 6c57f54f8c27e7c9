"""The guided denoiser with a transformer that writes down what it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ltx2rt.components.denoisers import Guidance, GuidedDenoiser, passes, simple_denoise
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.components.transformer_inputs import KINDS, ModalityInput, Perturbations
from ltx2rt.errors import OptionError
from ltx2rt.latents.shapes import AudioLatentShape, VideoLatentShape
from ltx2rt.latents.state import LatentState, freeze, make_audio_state, make_video_state
from ltx2rt.latents.streams import Streams
from ltx2rt.sampling.guidance import GuiderParams, GuiderSchedule
from ltx2rt.sampling.samplers import latents_of
from tests.tolerances import TOLERANCES

NET = TOLERANCES["net"]
SIGMA = np.float32(0.5)
CONTEXT = TextContext(np.full((1, 4, 6), 1, np.float32), np.full((1, 4, 6), 2, np.float32))
NEGATIVE = {"video": np.full((1, 4, 6), -1.0, np.float32), "audio": np.full((1, 4, 6), -2.0)}
BOTH = GuiderParams(
    cfg_scale=3.0, stg_scale=0.5, stg_blocks=(1,), rescale_scale=0.0, modality_scale=2.0
)
OFF = GuiderParams()


def states() -> tuple[LatentState, LatentState]:
    video = make_video_state(VideoLatentShape.from_sizes((1, 8, 2, 1, 2)), 24.0)
    audio = make_audio_state(AudioLatentShape.from_sizes((1, 2, 3, 4)))
    random = np.random.default_rng(0)
    return tuple(
        replace(s, latent=random.standard_normal(s.latent.shape, np.float32))
        for s in (video, audio)
    )


class FakeTransformer:
    """The velocity of a sample depends on its text, its perturbations and the streams' enabling;
    every call is kept.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Perturbations]] = []

    def __call__(
        self,
        video: ModalityInput | None,
        audio: ModalityInput | None,
        perturbations: Perturbations | None = None,
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        perturbations = perturbations or Perturbations()
        self.calls.append((video, audio, perturbations))
        return tuple(self._velocity(s, perturbations) for s in (video, audio))

    def passes(
        self, asked: Sequence[tuple[ModalityInput | None, ModalityInput | None, Perturbations]]
    ) -> list[tuple[np.ndarray | None, np.ndarray | None]]:
        return [self(*each) for each in asked]

    def _velocity(self, stream: ModalityInput | None, p: Perturbations) -> np.ndarray | None:
        if stream is None:
            return None
        batch = stream.latent.shape[0]
        keeps = [p.switches(kind, block, batch) for kind in KINDS for block in (0, 1)]
        mark = stream.context.mean(axis=(1, 2)) + sum(k * (i + 1) for i, k in enumerate(keeps))
        velocity = np.sin(stream.latent + mark[:, None, None])
        return velocity.astype(np.float32)


def run(
    video_params: GuiderParams = BOTH,
    audio_params: GuiderParams = BOTH,
    *,
    index: int = 0,
    batch: int = 1,
    negative: bool = True,
    audio: bool = True,
) -> tuple[FakeTransformer, GuidedDenoiser, tuple]:
    model, (video_state, audio_state) = FakeTransformer(), states()
    guidance = Guidance(
        video=GuiderSchedule(bins={1.0: video_params}),
        audio=GuiderSchedule(bins={1.0: audio_params}),
        negative_video=NEGATIVE["video"] if negative else None,
        negative_audio=NEGATIVE["audio"] if negative else None,
        max_batch_size=batch,
    )
    given = Streams(video_state, audio_state if audio else None)
    denoise = GuidedDenoiser(model, given, CONTEXT, guidance)
    return model, denoise, tuple(denoise(latents_of(given), SIGMA, index))


def skips(perturbations: Perturbations) -> list[tuple]:
    return [(s.kind, s.blocks, s.samples) for s in perturbations.skips]


def test_four_passes_in_the_official_order() -> None:
    model, _, _ = run()
    assert [video.context.mean() for video, _, _ in model.calls] == [1, -1, 1, 1]
    assert [audio.context.mean() for _, audio, _ in model.calls] == [2, -2, 2, 2]
    block = frozenset({1})
    assert [skips(p) for _, _, p in model.calls] == [
        [],
        [],
        [("video_self", block, None), ("audio_self", block, None)],
        [("audio_to_video", None, None), ("video_to_audio", None, None)],
    ]
    first = model.calls[0][0]
    assert all(call[0].latent is first.latent for call in model.calls)


@pytest.mark.parametrize(
    ("video", "audio", "names"),
    [
        (OFF, OFF, ["cond"]),
        (GuiderParams(cfg_scale=2.0), OFF, ["cond", "uncond"]),
        (OFF, GuiderParams(stg_scale=1.0, stg_blocks=(0,)), ["cond", "ptb"]),
        (GuiderParams(modality_scale=2.0), GuiderParams(cfg_scale=2.0), ["cond", "uncond", "mod"]),
    ],
)
def test_only_needed_passes_run(video: GuiderParams, audio: GuiderParams, names: list) -> None:
    needed = passes({"video": video, "audio": audio})
    assert [p.name for p in needed] == names
    model, _, _ = run(video, audio)
    assert len(model.calls) == len(names)


def test_a_pass_of_the_other_modality_has_no_weight() -> None:
    """Passes that only the audio needs leave the video's plain prediction alone."""
    plain, _, (video, _) = run(OFF, OFF)
    guided, _, (same, _) = run(OFF, BOTH)
    assert len(plain.calls) == 1
    assert len(guided.calls) == 4
    np.testing.assert_array_equal(video, same)


def test_weights_of_the_passes() -> None:
    model, _, (video, audio) = run()
    for row, got, params in ((0, video, BOTH), (1, audio, BOTH)):
        cond, uncond, ptb, mod = (
            call[row].latent - FakeTransformer()._velocity(call[row], call[2]) * SIGMA
            for call in model.calls
        )
        want = (
            cond
            + (params.cfg_scale - 1) * (cond - uncond)
            + params.stg_scale * (cond - ptb)
            + (params.modality_scale - 1) * (cond - mod)
        )
        np.testing.assert_allclose(got, want, rtol=NET.rtol, atol=NET.atol)


@pytest.mark.parametrize("batch", [2, 3, 4, 9])
def test_batching_changes_nothing(batch: int) -> None:
    _, _, one = run()
    model, _, several = run(batch=batch)
    assert len(model.calls) == -(-4 // batch)
    for got, want in zip(several, one, strict=True):
        np.testing.assert_allclose(got, want, rtol=NET.rtol, atol=NET.atol)
    video = model.calls[0][0]
    assert video.latent.shape[0] == min(batch, 4)
    assert video.latent.strides[0] == video.positions.strides[0] == 0  # views, not copies


def test_skipped_steps() -> None:
    """Video every second step, audio every third: who runs, who keeps its last prediction."""
    video_params, audio_params = replace(BOTH, skip_step=1), replace(BOTH, skip_step=2)
    model, denoise, (video, audio) = run(video_params, audio_params)
    latents = Streams(*(s.latent + 1 for s in states()))
    enabled = []
    for index in range(1, 5):
        before = len(model.calls)
        new_video, new_audio = denoise(latents, SIGMA, index)
        enabled.append({(v.enabled, a.enabled) for v, a, _ in model.calls[before:]})
        assert np.array_equal(new_video, video) is (index in (1, 3))
        assert np.array_equal(new_audio, audio) is (index in (1, 2, 4))
        video, audio = new_video, new_audio
        latents = latents.map(lambda x: x + 1)
    assert enabled == [set(), {(True, False)}, {(False, True)}, {(True, False)}]


def test_a_missing_negative_prompt_is_refused() -> None:
    with pytest.raises(OptionError, match=r"cfg_scale=3 of the video needs a negative prompt"):
        run(negative=False)
    model, _, _ = run(replace(BOTH, cfg_scale=1.0), replace(BOTH, cfg_scale=1.0), negative=False)
    assert len(model.calls) == 3


def test_a_modality_without_negative_context_keeps_its_positive_one() -> None:
    model, (video, audio) = FakeTransformer(), states()
    guidance = Guidance(
        video=GuiderSchedule(bins={1.0: GuiderParams(cfg_scale=2.0)}),
        audio=GuiderSchedule(),
        negative_video=NEGATIVE["video"],
    )
    frozen = freeze(audio)
    given = Streams(video, frozen)
    _, got = GuidedDenoiser(model, given, CONTEXT, guidance)(latents_of(given), SIGMA, 0)
    assert [a.context.mean() for _, a, _ in model.calls] == [2, 2]
    assert all(a.sigma == 0 and not a.timesteps.any() for _, a, _ in model.calls)
    np.testing.assert_array_equal(got, frozen.latent)


def test_an_absent_modality() -> None:
    model, _, (_, audio) = run(audio=False)
    assert audio is None
    assert all(a is None for _, a, _ in model.calls)
    # its guidance asks for nothing
    assert len(model.calls) == 4
    model, _, _ = run(OFF, BOTH, audio=False)
    assert len(model.calls) == 1


def test_simple_is_one_plain_pass() -> None:
    model, (video, audio) = FakeTransformer(), states()
    given = Streams(video, audio)
    got = simple_denoise(model, given, CONTEXT)(latents_of(given), SIGMA, 3)
    assert len(model.calls) == 1
    _, _, want = run(OFF, OFF)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
    given = Streams(video, None)
    assert simple_denoise(model, given, CONTEXT)(latents_of(given), SIGMA, 0).audio is None


def test_parameters_follow_sigma() -> None:
    model, (video, audio) = FakeTransformer(), states()
    schedule = GuiderSchedule(bins={0.4: OFF, 1.0: GuiderParams(modality_scale=2.0)})
    given = Streams(video, audio)
    denoise = GuidedDenoiser(
        model, given, CONTEXT, Guidance(video=schedule, audio=GuiderSchedule())
    )
    denoise(latents_of(given), np.float64(0.9), 0)
    denoise(latents_of(given), np.float64(0.3), 1)
    assert len(model.calls) == 2 + 1
