from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx2rt.errors import ShapeError
from ltx2rt.latents.shapes import (
    AudioLatentShape,
    VideoLatentShape,
    VideoPixelShape,
    VideoScaleFactors,
    check_generation_size,
    nearest_multiples,
)


@pytest.mark.parametrize(
    ("height", "width", "frames", "frame_rate", "video_tokens", "audio_tokens"),
    [
        (512, 768, 9, 24, 768, 9),
        (512, 768, 121, 24, 6144, 126),
        (512, 768, 241, 24, 11904, 251),
        (544, 960, 97, 24, 6630, 101),
        (1024, 1536, 121, 24, 24576, 126),
        (704, 1280, 257, 25, 29040, 257),
        (1088, 1920, 121, 24, 32640, 126),
    ],
)
def test_token_counts(height, width, frames, frame_rate, video_tokens, audio_tokens):
    pixels = VideoPixelShape(num_frames=frames, height=height, width=width, frame_rate=frame_rate)
    assert VideoLatentShape.from_pixel_shape(pixels).token_count == video_tokens
    assert AudioLatentShape.from_duration(pixels.duration_s).token_count == audio_tokens


@pytest.mark.parametrize(("seconds", "frames"), [(0.1, 2), (0.3, 8), (0.5, 12), (0.7, 18)])
def test_audio_frames_round_half_to_even(seconds, frames):
    assert AudioLatentShape.from_duration(seconds).num_frames == frames


def test_other_frame_counts_floor_to_the_grid():
    pixels = VideoPixelShape(num_frames=20, height=70, width=33, frame_rate=24.0)
    latent = VideoLatentShape.from_pixel_shape(pixels)
    assert latent.sizes == (1, 128, 3, 2, 1)
    assert latent.pixel_frames() == 17


def test_one_problem_is_one_sentence():
    with pytest.raises(ShapeError) as caught:
        check_generation_size(530, 768, 121, two_stage=True)
    assert str(caught.value).endswith(
        "height=530 is not a multiple of 64 (two-stage). Nearest valid: 512, 576."
    )


def test_all_problems_are_reported_at_once():
    with pytest.raises(ShapeError) as caught:
        check_generation_size(530, 0, 20, two_stage=False)
    message = str(caught.value)
    assert "height=530 is not a multiple of 32 (one-stage). Nearest valid: 512, 544." in message
    assert "width=0 is not positive (one-stage). Nearest valid: 32." in message
    assert "num_frames=20 is not 8k+1. Nearest valid: 17, 25." in message


def test_stage_decides_the_multiple():
    check_generation_size(544, 960, 97, two_stage=False)
    with pytest.raises(ShapeError, match="Nearest valid: 512, 576"):
        check_generation_size(544, 960, 97, two_stage=True)


@given(
    height=st.integers(-100, 3000),
    width=st.integers(-100, 3000),
    frames=st.integers(-20, 500),
    two_stage=st.booleans(),
    factors=st.sampled_from([VideoScaleFactors(), VideoScaleFactors(4, 16, 16)]),
)
def test_suggested_sizes_are_valid(height, width, frames, two_stage, factors):
    """Whatever a message suggests is accepted."""
    request = {"height": height, "width": width, "num_frames": frames}
    try:
        check_generation_size(**request, two_stage=two_stage, scale_factors=factors)
    except ShapeError as error:
        found = re.findall(r"(\w+)=-?\d+ .*?Nearest valid: ([\d, ]+)\.", str(error))
        assert found
        for choice in (0, -1):
            fixed = request | {name: int(values.split(", ")[choice]) for name, values in found}
            check_generation_size(**fixed, two_stage=two_stage, scale_factors=factors)


@given(st.integers(1, 10_000), st.integers(1, 128), st.data())
def test_nearest_multiples_surround_the_value(value, step, data):
    offset = data.draw(st.integers(0, step - 1))
    near = nearest_multiples(value, step, offset)
    assert all(v > 0 and v % step == offset % step for v in near)
    assert len(near) == 1 or near[0] < value < near[1] == near[0] + step


def test_wrong_rank_is_refused():
    with pytest.raises(ShapeError, match="5 dimensions"):
        VideoLatentShape.from_sizes((1, 2, 3))
    with pytest.raises(ShapeError, match="4 dimensions"):
        AudioLatentShape.from_sizes((1, 2, 3))
