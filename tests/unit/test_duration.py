"""Seconds, frames and steps of sound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx2rt.config import GenerationConfig
from ltx2rt.errors import InternalError, OptionError
from ltx2rt.latents.duration import AutoDuration, audio_steps, longest_clip
from ltx2rt.latents.shapes import AudioLatentShape

FRAME_RATES = st.sampled_from([12.5, 23.976, 24.0, 25.0, 29.97, 30.0, 48.0, 60.0])


@pytest.mark.parametrize(
    ("seconds", "frame_rate", "limits", "frames"),
    [  # of the official code
        (0.2, 24, (1, 20), 25),
        (0.2, 24, (2, 4), 49),
        (0.2, 24, (0.3, 0.72), 9),
        (0.2, 30, (1, 20), 33),
        (0.2, 30, (2, 4), 65),
        (0.2, 30, (0.3, 0.72), 9),
        (1.01, 24, (1, 20), 25),
        (1.01, 24, (2, 4), 49),
        (1.01, 24, (0.3, 0.72), 17),
        (1.01, 30, (1, 20), 33),
        (1.01, 30, (2, 4), 65),
        (1.01, 30, (0.3, 0.72), 17),
        (3.3, 24, (1, 20), 73),
        (3.3, 24, (2, 4), 73),
        (3.3, 24, (0.3, 0.72), 17),
        (3.3, 30, (1, 20), 97),
        (3.3, 30, (2, 4), 97),
        (3.3, 30, (0.3, 0.72), 17),
        (7.77, 24, (1, 20), 185),
        (7.77, 24, (2, 4), 89),
        (7.77, 24, (0.3, 0.72), 17),
        (7.77, 30, (1, 20), 233),
        (7.77, 30, (2, 4), 113),
        (7.77, 30, (0.3, 0.72), 17),
        (25.0, 24, (1, 20), 473),
        (25.0, 24, (2, 4), 89),
        (25.0, 24, (0.3, 0.72), 17),
        (25.0, 30, (1, 20), 593),
        (25.0, 30, (2, 4), 113),
        (25.0, 30, (0.3, 0.72), 17),
    ],
)
def test_frames_of_the_official_code(
    seconds: float, frame_rate: float, limits: tuple[float, float], frames: int
) -> None:
    auto = AutoDuration(min_s=limits[0], max_s=limits[1])
    assert auto.frames(seconds, frame_rate) == frames


@given(
    seconds=st.floats(0, 1e30),
    low=st.floats(0, 30),
    span=st.floats(0, 30),
    frame_rate=FRAME_RATES,
)
def test_frames_are_on_the_grid_within_the_limits(
    seconds: float, low: float, span: float, frame_rate: float
) -> None:
    if low + span == 0:
        return
    auto = AutoDuration(min_s=low, max_s=low + span)
    try:
        fewest, most = auto.limits(frame_rate)
    except OptionError:
        grid = range(1, round((low + span) * frame_rate) + 1, 8)
        assert not [n for n in grid if n >= round(low * frame_rate)]
        return
    frames = auto.frames(seconds, frame_rate)
    assert frames % 8 == 1
    assert fewest <= frames <= most
    wanted = round(min(seconds, 1e3) * frame_rate)
    if fewest + 8 <= wanted <= most:
        assert 0 <= wanted - frames < 8


@pytest.mark.parametrize(
    ("low", "high"), [(2, 1), (-1, 1), (0, 0), (1, float("inf")), (float("nan"), 1)]
)
def test_limits_are_a_range(low: float, high: float) -> None:
    with pytest.raises(OptionError, match="is not a range"):
        AutoDuration(min_s=low, max_s=high)


def test_limits_without_a_frame_count_between() -> None:
    auto = AutoDuration(min_s=0.4, max_s=0.5)
    with pytest.raises(OptionError, match=r"10 to 12 frames .* 17 frames"):
        auto.limits(24)
    assert auto.limits(60) == (24, 30)  # 25 lies between


def test_a_number_is_there_only_when_it_is_known() -> None:
    assert GenerationConfig(prompt="a", num_frames=9).frame_count == 9
    with pytest.raises(InternalError, match="before it was predicted"):
        GenerationConfig(prompt="a", num_frames=AutoDuration()).frame_count  # noqa: B018


def test_steps_of_sound() -> None:
    """Of the goldens: 0.395 s at 44.1 kHz give 40 mel frames and 10 steps."""
    assert audio_steps(17420, 44100) == 10
    assert audio_steps(16000, 16000) == 26
    assert audio_steps(48001, 48000) == audio_steps(16001, 16000)


@given(
    latents=st.integers(0, 400),
    frame_rate=FRAME_RATES,
    rate=st.sampled_from([8000, 16000, 22050, 44100, 48000]),
)
def test_sound_as_long_as_a_clip_suffices(latents: int, frame_rate: float, rate: int) -> None:
    """What `audio-to-video` reads by default always fills the clip."""
    seconds = (8 * latents + 1) / frame_rate
    needed = AudioLatentShape.from_duration(seconds).num_frames
    assert audio_steps(round(seconds * rate), rate) >= needed


@given(steps=st.integers(0, 3000), frame_rate=FRAME_RATES)
def test_longest_clip_is_the_longest(steps: int, frame_rate: float) -> None:
    def needs(frames: int) -> int:
        return AudioLatentShape.from_duration(frames / frame_rate).num_frames

    frames = longest_clip(steps, frame_rate)
    if frames is None:
        assert needs(1) > steps
    else:
        assert frames % 8 == 1
        assert needs(frames) <= steps < needs(frames + 8)
