"""Which tokens a retake makes anew: those that share time with its window, and no others."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ltx2rt.components.audio import crop_latent, fit_latent
from ltx2rt.latents.conditioning import TemporalRegion
from ltx2rt.latents.shapes import AudioLatentShape, VideoLatentShape
from ltx2rt.latents.state import make_audio_state, make_video_state
from ltx2rt.pipelines.inputs import fit_video

#: two times are the same when float32 cannot tell them apart
EPSILON = 1e-5


def overlap(start: float, end: float, low: float, high: float) -> float:
    return min(end, high) - max(start, low)


@given(
    latents=st.integers(1, 12),
    frame_rate=st.sampled_from([23.976, 24.0, 25.0, 30.0, 60.0]),
    window=st.tuples(st.floats(0, 5), st.floats(0.001, 5)),
)
def test_video(latents: int, frame_rate: float, window: tuple[float, float]) -> None:
    low, high = window[0], window[0] + window[1]
    shape = VideoLatentShape(num_frames=latents, height=2, width=1)
    state = TemporalRegion(start_s=low, end_s=high).apply(make_video_state(shape, frame_rate))
    mask = state.mask[0, :, 0].reshape(latents, 2)
    assert set(np.unique(mask)) <= {0.0, 1.0}
    np.testing.assert_array_equal(mask[:, 0], mask[:, 1])
    for index in range(latents):  # latent frame 0 is one pixel frame, the others are eight
        first, last = (0, 1) if index == 0 else (8 * index - 7, 8 * index + 1)
        shared = overlap(first / frame_rate, last / frame_rate, low, high)
        if abs(shared) > EPSILON:
            assert mask[index, 0] == (shared > 0)


@given(steps=st.integers(1, 200), window=st.tuples(st.floats(0, 9), st.floats(0.001, 9)))
def test_audio(steps: int, window: tuple[float, float]) -> None:
    low, high = window[0], window[0] + window[1]
    state = make_audio_state(AudioLatentShape(num_frames=steps))
    mask = TemporalRegion(start_s=low, end_s=high).apply(state).mask[0, :, 0]
    for index in range(steps):
        start, end = max(0, 4 * index - 3) / 100, (4 * index + 1) / 100
        shared = overlap(start, end, low, high)
        if abs(shared) > EPSILON:
            assert mask[index] == (shared > 0)


@given(found=st.integers(1, 9), wanted=st.integers(1, 9))
def test_latents_of_a_source_fit_the_clip(found: int, wanted: int) -> None:
    video = np.arange(found, dtype=np.float32)[None, None, :, None, None] + 1
    sound = np.arange(found, dtype=np.float32)[None, None, :, None] + 1
    want = [i + 1 if i < found else 0 for i in range(wanted)]
    assert fit_video(video, wanted)[0, 0, :, 0, 0].tolist() == want
    assert fit_latent(sound, wanted)[0, 0, :, 0].tolist() == want
    if found >= wanted:
        assert crop_latent(sound, wanted)[0, 0, :, 0].tolist() == want
