from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx2rt.errors import OptionError
from ltx2rt.latents.shapes import AudioLatentShape, VideoLatentShape
from ltx2rt.latents.state import LatentState, freeze, make_audio_state, make_video_state
from ltx2rt.latents.streams import Streams
from ltx2rt.sampling import schedules
from ltx2rt.sampling.noise import TorchGenerator
from ltx2rt.sampling.res_2s import Res2s, normalise_noise, res_2s_coefficients, sample_res_2s
from ltx2rt.sampling.samplers import (
    add_noise,
    ancestral_step,
    euler_step,
    modality_sigma,
    post_process,
    sample_euler,
    sample_euler_ancestral,
    sample_gradient_estimation,
    to_denoised,
    to_velocity,
    token_timesteps,
)
from ltx2rt.weights.floats import bfloat16_bits, bfloat16_values, cast, round_bfloat16
from tests.tolerances import TOLERANCES

SCALAR = TOLERANCES["scalar"]
SIGMAS = schedules.sigma_table(schedules.DISTILLED)


def close(got, want, scale=1.0):
    np.testing.assert_allclose(got, want, rtol=SCALAR.rtol * scale, atol=SCALAR.atol * scale)


def states(dtype="float32") -> tuple[LatentState, LatentState]:
    video = make_video_state(VideoLatentShape(num_frames=2, height=1, width=2), 24.0, dtype=dtype)
    audio = make_audio_state(AudioLatentShape(num_frames=3), dtype=dtype)
    generator = TorchGenerator(0)
    noisy = (add_noise(s, generator.randn(s.latent.shape, dtype), 1.0) for s in (video, audio))
    return tuple(noisy)


def toward(value: float):
    """A denoiser that always predicts `value`."""

    def denoise(latents, sigma, index):
        return latents.map(lambda x: np.full_like(x, value))

    return denoise


# Schedules


@pytest.mark.parametrize(
    ("steps", "tokens", "bits"),
    [
        (1, None, "3dccccd0 00000000"),
        (3, None, "3f7ffffc 3f3bf32c 3dccccd0 00000000"),
        (4, 4096, "3f7ffffd 3f5df928 3f21ae7f 3dccccd0 00000000"),
    ],
)
def test_ltx2_schedule_bits(steps, tokens, bits):
    sigmas = schedules.ltx2_sigmas(steps, tokens)
    assert [f"{w:08x}" for w in sigmas.view(np.uint32)] == bits.split()


@given(st.integers(2, 200), st.none() | st.integers(1, 8192))
def test_schedules_fall_to_zero(steps, tokens):
    for sigmas in (
        schedules.ltx2_sigmas(steps, tokens),
        schedules.linear_quadratic_sigmas(steps),
    ):
        assert len(sigmas) == steps + 1
        assert sigmas.dtype == np.float32
        assert (np.diff(sigmas) < 0).all()
        assert sigmas[0] <= 1.0
        assert sigmas[-1] == 0
    last = float(schedules.ltx2_sigmas(steps, tokens)[-2])
    assert last == pytest.approx(0.1, abs=1e-6)  # a few float32 roundings of 1 - 0.9


@given(st.integers(1, 60))
def test_beta_schedule_falls(steps):
    assert (np.diff(schedules.beta_sigmas(steps)) < 0).all()


def test_beta_quantile_known_values():
    """Beta(1, 1) is uniform, Beta(1/2, 1/2) is the arcsine law."""
    for p in (0.1, 0.5, 0.93):
        assert schedules.beta_quantile(p, 1.0, 1.0) == pytest.approx(p, abs=1e-12)
        arcsine = np.sin(np.pi * p / 2) ** 2
        assert schedules.beta_quantile(p, 0.5, 0.5) == pytest.approx(arcsine, abs=1e-12)


@pytest.mark.parametrize("bad", [[1.0], [1.0, 1.0, 0.0], [0.5, 0.6], [1.0, float("nan")], [1, -1]])
def test_bad_tables_are_refused(bad):
    with pytest.raises(OptionError, match="sigmas must"):
        schedules.sigma_table(bad)


def test_too_few_steps_are_refused():
    with pytest.raises(OptionError, match="rounds to 1"):
        schedules.ltx2_sigmas(1, 768)
    with pytest.raises(OptionError, match="num_inference_steps=0"):
        schedules.ltx2_sigmas(0)


# Short floats


@given(st.floats(width=32, allow_nan=False))
def test_bfloat16_rounding(value):
    """Rounding is idempotent and never further away than half a unit."""
    with np.errstate(over="ignore"):
        x = np.float32([value])
        rounded = round_bfloat16(x)
    assert np.array_equal(round_bfloat16(rounded), rounded)
    if np.isfinite(rounded[0]):
        bits = bfloat16_bits(x).astype(np.int32)
        neighbours = bfloat16_values(np.array([bits[0] - 1, bits[0] + 1]).astype(np.uint16))
        distance = abs(float(rounded[0]) - value)
        assert all(distance <= abs(float(n) - value) for n in neighbours if np.isfinite(n))


def test_unknown_float_dtype_is_refused():
    with pytest.raises(OptionError, match="float8"):
        cast(np.zeros(2), "float8")


# Conversions and steps


@given(st.floats(0.01, 1.0), st.integers(0, 2**32))
def test_velocity_and_denoised_are_inverse(sigma, seed):
    random = np.random.default_rng(seed)
    x, d = (random.standard_normal((1, 3, 8)).astype(np.float32) for _ in range(2))
    s = np.float32(sigma)
    again = to_denoised(x, to_velocity(x, d, s), s)
    close(again, d, scale=4)  # two float32 roundings of numbers up to about 4


def test_velocity_at_sigma_zero_is_refused():
    with pytest.raises(OptionError, match="sigma=0"):
        to_velocity(np.zeros((1, 1, 1)), np.zeros((1, 1, 1)), np.float32(0))


def test_euler_step_is_linear_interpolation():
    x, d = np.float32([[[1.0, 2.0]]]), np.float32([[[3.0, -2.0]]])
    got = euler_step(x, d, np.float32(0.8), np.float32(0.2))
    close(got, 0.25 * x + 0.75 * d)
    close(euler_step(x, d, np.float32(0.8), np.float32(0)), d)
    assert got.dtype == np.float32


def test_ancestral_step_keeps_the_noise_level():
    """From pure data plus noise of level s, a step with the true data ends at level t."""
    random = np.random.default_rng(0)
    data = np.full((1, 200, 200), 2.0, np.float32)
    s, t = np.float32(0.8), np.float32(0.5)
    x = (1 - s) * data + s * random.standard_normal(data.shape).astype(np.float32)
    fresh = random.standard_normal(data.shape).astype(np.float32)
    for eta in (0.3, 1.0):
        y = ancestral_step(x, data, s, t, fresh, eta=eta)
        assert y.mean() == pytest.approx((1 - t) * 2.0, abs=0.02)  # six standard errors
        assert y.std() == pytest.approx(t, abs=0.02)


def test_ancestral_step_without_eta_is_euler():
    x, d = np.float32([[[1.0, 2.0]]]), np.float32([[[3.0, -2.0]]])
    s, t = np.float32(0.8), np.float32(0.2)
    close(ancestral_step(x, d, s, t, None, eta=0.0), euler_step(x, d, s, t))
    assert np.array_equal(ancestral_step(x, d, s, np.float32(0), None), d)
    with pytest.raises(OptionError, match="needs noise"):
        ancestral_step(x, d, s, t, None)


# States


def test_noise_scale_and_mask():
    shape = VideoLatentShape(num_frames=1, height=1, width=3)
    initial = np.full(shape.sizes, 10.0, np.float32)
    state = make_video_state(shape, 24.0, initial)
    state = replace(state, mask=np.float32([[[1.0], [0.0], [0.25]]]))
    noise = np.full(state.latent.shape, 2.0, np.float32)
    got = add_noise(state, noise, 0.909375).latent[0, :, 0]
    start = 10 + 0.909375 * (2 - 10)
    close(got, [start, 10.0, 10 + 0.25 * (start - 10)])


def test_frozen_state():
    state = states()[1]
    frozen = freeze(state)
    assert modality_sigma(frozen, np.float32(0.7)) == 0
    assert modality_sigma(state, np.float32(0.7)) == np.float32(0.7)
    assert (token_timesteps(frozen, np.float32(0.7)) == 0).all()
    assert token_timesteps(state, np.float64(0.7)).dtype == np.float64
    assert np.array_equal(post_process(np.ones_like(state.latent), frozen), frozen.clean)


# Loops


def all_loops():
    draw = TorchGenerator(5).randn

    def wide(shape):
        return normalise_noise(TorchGenerator(1).randn(shape, "float64"))

    return {
        "euler": lambda d, v, a: sample_euler(d, Streams(v, a), SIGMAS),
        "ancestral": lambda d, v, a: sample_euler_ancestral(d, Streams(v, a), SIGMAS, draw),
        "gradient": lambda d, v, a: sample_gradient_estimation(d, Streams(v, a), SIGMAS),
        "res_2s": lambda d, v, a: sample_res_2s(
            d, Streams(v, a), SIGMAS, wide, wide, Res2s(dtype="float32")
        ),
    }


@pytest.mark.parametrize("name", list(all_loops()))
def test_loops_end_at_the_prediction_and_respect_the_mask(name):
    video, audio = states()
    mask = video.mask.copy()
    mask[:, 0] = 0
    video = replace(
        video, mask=mask, clean=np.full_like(video.clean, 3.0), latent=video.latent.copy()
    )
    video.latent[:, 0] = 3.0
    out_video, out_audio = all_loops()[name](toward(0.5), video, audio)
    close(out_video.latent[:, 1:], np.full_like(out_video.latent[:, 1:], 0.5), scale=4)
    close(out_video.latent[:, 0], np.full_like(out_video.latent[:, 0], 3.0), scale=4)
    close(out_audio.latent, np.full_like(out_audio.latent, 0.5), scale=4)


@pytest.mark.parametrize("name", list(all_loops()))
def test_loops_run_one_modality(name):
    audio = states()[1]
    out_video, out_audio = all_loops()[name](toward(0.5), None, audio)
    assert out_video is None
    close(out_audio.latent, np.full_like(out_audio.latent, 0.5), scale=4)


def test_euler_calls():
    """The denoiser sees every sigma but the last, in order; the callback follows each step."""
    video, audio = states()
    seen, steps = [], []

    def denoise(latents, sigma, index):
        seen.append((index, sigma))
        return toward(0.0)(latents, sigma, index)

    sample_euler(denoise, Streams(video, audio), SIGMAS, on_step=lambda i, *_: steps.append(i))
    assert seen == list(enumerate(SIGMAS[:-1]))
    assert steps == list(range(8))


def test_ancestral_draws_video_before_audio_and_not_on_the_last_step():
    video, audio = states()
    shapes = []

    def draw(shape):
        shapes.append(shape)
        return np.zeros(shape, np.float32)

    sample_euler_ancestral(toward(0.0), Streams(video, audio), SIGMAS, draw)
    assert shapes == [video.latent.shape, audio.latent.shape] * 7
    shapes.clear()
    sample_euler_ancestral(toward(0.0), Streams(video, audio), SIGMAS, draw, eta=0.0)
    assert shapes == []


def test_res_2s_evaluations():
    """2n + 1 evaluations: first, midpoint (float64 sigma, index 0), ..., last at 0.0011."""
    video, audio = states()
    calls = []

    def denoise(latents, sigma, index):
        calls.append((index, sigma))
        return toward(0.0)(latents, sigma, index)

    sigmas = np.float32([1.0, 0.5, 0.0])
    sample_res_2s(denoise, Streams(video, audio), sigmas, np.zeros, np.zeros)
    assert [i for i, _ in calls] == [0, 0, 1, 0, 2]
    assert [s.dtype.itemsize for _, s in calls] == [4, 8, 4, 8, 4]
    assert calls[1][1] == np.sqrt(np.float64(0.5))
    assert calls[4][1] == np.float32(0.0011)


def test_res_2s_coefficients_limit():
    """For small steps the scheme is the explicit midpoint rule."""
    close(res_2s_coefficients(1e-12), (0.5, 0.0, 1.0))


def test_normalised_noise():
    noise = normalise_noise(TorchGenerator(3).randn((2, 5, 16), "float64") * 3 + 1)
    close(noise.mean(axis=(1, 2)), np.zeros(2))
    close(noise.std(axis=(1, 2), ddof=1), np.ones(2))


def test_bfloat16_states_stay_bfloat16():
    video, audio = states("bfloat16")
    out_video, out_audio = sample_euler(toward(0.3), Streams(video, audio), SIGMAS)
    for state in (video, audio, out_video, out_audio):
        assert np.array_equal(round_bfloat16(state.latent), state.latent)
