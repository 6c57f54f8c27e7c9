"""The windowed-sinc resampler and the helpers around the audio engines, in numpy."""

import numpy as np
import pytest

from ltx2rt.components.audio import (
    AudioDecoder,
    AudioEncoder,
    as_stereo,
    crop_latent,
    fit_latent,
)
from ltx2rt.errors import OptionError, ShapeError
from ltx2rt.media.resample import resample, resampling_taps


def direct(waveform: np.ndarray, rate_in: int, rate_out: int, dtype: type) -> np.ndarray:
    """The sum of spec/audio.md §2.2: every output from every input, times of this dtype."""
    divisor = np.gcd(rate_in, rate_out)
    o, n = rate_in // divisor, rate_out // divisor
    base = 0.99 * min(o, n)
    k = np.arange(int(np.ceil(n * waveform.shape[1] / o)))[:, None]
    sample = (np.arange(waveform.shape[1]) - k // n * o).astype(dtype)
    t = dtype(base) * ((-(k % n)).astype(dtype) / dtype(n) + sample / dtype(o))
    t = np.clip(t, -6, 6).astype(np.float64)
    weights = np.sinc(t) * np.cos(np.pi * t / 12) ** 2 * base / o
    return waveform.astype(np.float64) @ weights.T


@pytest.mark.parametrize(
    ("rate_in", "rate_out", "exact"),
    # what float32 times cost against exact ones
    [
        (48000, 16000, 2e-6),
        (44100, 16000, 3e-5),
        (16000, 48000, 2e-6),
        (22050, 16000, 6e-5),
        (8000, 16000, 2e-6),
        (44101, 16000, 2e-2),
    ],
)
def test_resample_is_the_direct_sum(rate_in: int, rate_out: int, exact: float) -> None:
    waveform = np.random.default_rng(1).standard_normal((2, 1501)).astype(np.float32)
    got = resample(waveform, rate_in, rate_out)
    want = direct(waveform, rate_in, rate_out, np.float32)
    assert got.shape == want.shape
    assert got.dtype == np.float32
    # float32 taps and sums of about 40 products
    np.testing.assert_allclose(got, want, atol=2e-6)
    np.testing.assert_allclose(got, direct(waveform, rate_in, rate_out, np.float64), atol=exact)


def test_resample_keeps_a_tone() -> None:
    time_in, time_out = np.arange(4800) / 48000, np.arange(1600) / 16000
    tone = np.sin(2 * np.pi * 440 * time_in).astype(np.float32)[None]
    got = resample(tone, 48000, 16000)[0, 40:-40]
    # the filter's pass band ripples by about a thousandth
    np.testing.assert_allclose(got, np.sin(2 * np.pi * 440 * time_out)[40:-40], atol=3e-3)


def test_taps_leave_out_only_zeros() -> None:
    taps, first = resampling_taps(1, 3)
    assert taps.shape[0] == 1
    assert first.tolist() == [-19]  # width ceil(6 * 3 / 0.99)
    assert abs(float(taps.sum()) - 1.0) < 2e-3  # not normalised: 1.0005 and the like


def test_resample_equal_rates_and_long_signals() -> None:
    waveform = np.random.default_rng(2).standard_normal((1, 210_000)).astype(np.float32)
    assert resample(waveform, 16000, 16000) is waveform
    got = resample(waveform, 48000, 16000)  # 70,000 outputs: more than one chunk
    part = resample(waveform[:, 196_500:], 48000, 16000)
    np.testing.assert_allclose(got[:, 65_600:], part[:, 100:], atol=1e-6)


def test_resample_refuses() -> None:
    with pytest.raises(OptionError, match="at least 1"):
        resample(np.zeros((1, 4), np.float32), 0, 16000)
    with pytest.raises(ShapeError, match=r"\[channels, samples\]"):
        resample(np.zeros(4, np.float32), 8000, 16000)


class _Engine:
    def __init__(self, function):
        self.function = function

    def __call__(self, tensors):
        return self.function(**tensors)


def test_decoder_chains_its_engines() -> None:
    decoder = _Engine(lambda audio_latent: {"mel": audio_latent + 1})
    vocoder = _Engine(lambda mel: {"waveform": mel.reshape(1, 2, -1) * 2})
    latent = np.arange(12, dtype=np.float32).reshape(1, 2, 3, 2)
    waveform, rate = AudioDecoder(decoder, vocoder, 24000)(latent)
    assert rate == 24000
    np.testing.assert_array_equal(waveform, (latent + 1).reshape(2, -1) * 2)
    with pytest.raises(ShapeError, match="one clip"):
        AudioDecoder(decoder, vocoder, 24000)(np.zeros((2, 2, 3, 2), np.float32))


def test_encoder_resamples_and_checks() -> None:
    seen = []

    def encode(waveform):
        seen.append(waveform)
        return {"audio_latent": np.ones((1, 8, 2, 16), np.float32)}

    waveform = np.random.default_rng(3).standard_normal((2, 6000)).astype(np.float32)
    encoder = AudioEncoder(_Engine(encode))
    assert encoder(waveform, 48000).shape == (1, 8, 2, 16)
    np.testing.assert_array_equal(seen[0][0], resample(waveform, 48000, 16000))
    with pytest.raises(ShapeError, match="stereo"):
        encoder(waveform[:1], 48000)
    with pytest.raises(ShapeError, match="at least 513"):
        encoder(waveform[:, :512], 16000)


def test_latents_are_cropped_or_padded() -> None:
    latent = np.random.default_rng(4).standard_normal((1, 8, 5, 16)).astype(np.float32)
    np.testing.assert_array_equal(crop_latent(latent, 3), latent[:, :, :3])
    np.testing.assert_array_equal(fit_latent(latent, 3), latent[:, :, :3])
    padded = fit_latent(latent, 7)
    np.testing.assert_array_equal(padded[:, :, :5], latent)
    assert not padded[:, :, 5:].any()
    assert padded.shape[2] == 7
    with pytest.raises(ShapeError, match="gives 5 latent steps, the clip needs 6"):
        crop_latent(latent, 6)


def test_mono_is_duplicated() -> None:
    mono = np.arange(4, dtype=np.float32)[None]
    np.testing.assert_array_equal(as_stereo(mono), np.concatenate([mono, mono]))
    assert as_stereo(np.zeros((2, 4), np.float32)).shape == (2, 4)
    with pytest.raises(ShapeError, match="mix it down"):
        as_stereo(np.zeros((6, 4), np.float32))
