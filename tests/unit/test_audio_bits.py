"""Sound that came from 16 bits leaves with the same bits; all other sound is scaled as ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx2rt.media.audio import to_int16, write_audio
from ltx2rt.media.sound import read_audio

SAMPLES = st.lists(st.integers(-32768, 32767), min_size=1, max_size=50)


@given(SAMPLES)
def test_every_16_bit_value_passes(samples: list[int]) -> None:
    bits = np.array([samples, samples[::-1]], np.int16)
    np.testing.assert_array_equal(to_int16(bits / np.float32(32768))[0].T, bits)


@given(SAMPLES)
def test_one_sample_between_two_steps_and_all_are_scaled(samples: list[int]) -> None:
    wave = np.array([samples, samples], np.float32) / np.float32(32768)
    wave[0, 0] = 0.25 + 2.0**-17
    scaled = np.clip(wave, -1, 1) * np.float32(32767)
    np.testing.assert_array_equal(to_int16(wave)[0].T, scaled.astype(np.int16))


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_through_files_and_back(suffix: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    wave = random.integers(-32768, 32768, (2, 999)).astype(np.float32) / np.float32(32768)
    for name in ("a", "b"):
        write_audio(tmp_path / f"{name}{suffix}", wave, 44100)
        wave, rate = read_audio(tmp_path / f"{name}{suffix}")
    assert rate == 44100
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
