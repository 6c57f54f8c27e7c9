from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx2rt.errors import ShapeError
from ltx2rt.latents.patchify import (
    audio_positions,
    patchify_audio,
    patchify_video,
    unpatchify_audio,
    unpatchify_video,
    video_positions,
    video_token_bounds,
)
from ltx2rt.latents.shapes import AudioLatentShape, VideoLatentShape

SMALL = st.integers(1, 4)


@given(SMALL, SMALL, SMALL, SMALL, SMALL, st.sampled_from([1, 2]))
def test_video_round_trip(batch, channels, frames, rows, columns, patch):
    sizes = (batch, channels, frames, rows * patch, columns * patch)
    latent = np.arange(np.prod(sizes), dtype=np.float32).reshape(sizes)
    tokens = patchify_video(latent, patch)
    assert tokens.shape == (batch, frames * rows * columns, channels * patch * patch)
    restored = unpatchify_video(tokens, VideoLatentShape.from_sizes(sizes), patch)
    assert np.array_equal(restored, latent)


@given(SMALL, SMALL, SMALL, SMALL)
def test_audio_round_trip(batch, channels, frames, bins):
    sizes = (batch, channels, frames, bins)
    latent = np.arange(np.prod(sizes), dtype=np.float32).reshape(sizes)
    tokens = patchify_audio(latent)
    assert np.array_equal(unpatchify_audio(tokens, AudioLatentShape.from_sizes(sizes)), latent)
    assert tokens[0, -1, -1] == latent[0, -1, -1, -1]


def test_token_order():
    """Token index is frame, row, column; features are the channels in order."""
    latent = np.random.default_rng(0).standard_normal((1, 5, 2, 3, 4))
    tokens = patchify_video(latent)
    assert np.array_equal(tokens[0, (1 * 3 + 2) * 4 + 3], latent[0, :, 1, 2, 3])
    audio = np.random.default_rng(1).standard_normal((1, 8, 6, 16))
    assert patchify_audio(audio)[0, 4, 3 * 16 + 7] == audio[0, 3, 4, 7]


def test_video_positions_of_the_standard_clip():
    shape = VideoLatentShape(num_frames=16, height=16, width=24)
    positions = video_positions(shape, 24.0)
    per_frame = shape.tokens_per_frame
    times = positions[0, 0, ::per_frame]
    want = [(0.0, 0.0416667), (0.0416667, 0.375), (0.375, 0.7083333)]
    np.testing.assert_allclose(times[:3], want, atol=5e-8)  # the values are given to 7 decimals
    np.testing.assert_allclose(times[15], (4.7083335, 5.0416665), atol=5e-7)
    assert positions[0, 2, 1].tolist() == [32.0, 64.0]
    assert positions[0, 1, 24].tolist() == [32.0, 64.0]


def test_audio_positions_of_the_standard_clip():
    positions = audio_positions(AudioLatentShape(num_frames=126))[0, 0]
    want = np.array([(0, 0.01), (0.01, 0.05), (0.05, 0.09)], np.float32)
    np.testing.assert_array_equal(positions[:3], want)
    np.testing.assert_array_equal(positions[-1], np.array([4.97, 5.01], np.float32))


@given(SMALL, SMALL, SMALL, st.floats(1.0, 120.0))
def test_positions_are_contiguous_and_rising(frames, rows, columns, frame_rate):
    shape = VideoLatentShape(num_frames=frames, height=rows, width=columns)
    positions = video_positions(shape, frame_rate)
    assert positions.dtype == np.float32
    assert (positions[..., 1] > positions[..., 0]).all()
    times = positions[0, 0, :: rows * columns]
    assert times[0, 0] == 0
    assert np.array_equal(times[1:, 0], times[:-1, 1])
    sound = audio_positions(AudioLatentShape(num_frames=frames))[0, 0]
    assert np.array_equal(sound[1:, 0], sound[:-1, 1])
    assert (sound[:, 1] > sound[:, 0]).all()


def test_bounds_with_patches():
    bounds = video_token_bounds(VideoLatentShape(num_frames=1, height=4, width=4), 2)
    assert bounds[0, 1:, 3].tolist() == [[2, 4], [2, 4]]


def test_wrong_tokens_are_refused():
    shape = VideoLatentShape(channels=4, num_frames=1, height=2, width=2)
    with pytest.raises(ShapeError, match="expected"):
        unpatchify_video(np.zeros((1, 3, 4)), shape)
    with pytest.raises(ShapeError, match="does not divide"):
        patchify_video(np.zeros((1, 4, 1, 3, 2)), 2)
