from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx2rt.errors import OptionError, ShapeError
from ltx2rt.latents.frame_sizes import frame_size
from ltx2rt.latents.shapes import (
    AudioLatentShape,
    VideoLatentShape,
    VideoPixelShape,
    VideoScaleFactors,
    check_generation_size,
    nearest_multiples,
    rendered_size,
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
        check_generation_size(531, 768, 121)
    assert str(caught.value).endswith("height=531 is not even. Nearest valid: 530, 532.")


def test_all_problems_are_reported_at_once():
    with pytest.raises(ShapeError) as caught:
        check_generation_size(531, 0, 20)
    message = str(caught.value)
    assert "height=531 is not even. Nearest valid: 530, 532." in message
    assert "width=0 is not positive. Nearest valid: 2." in message
    assert "num_frames=20 is not 8k+1. Nearest valid: 17, 25." in message


@given(
    height=st.integers(-100, 3000),
    width=st.integers(-100, 3000),
    frames=st.integers(-20, 500),
    factors=st.sampled_from([VideoScaleFactors(), VideoScaleFactors(4, 16, 16)]),
)
def test_suggested_sizes_are_valid(height, width, frames, factors):
    """Whatever a message suggests is accepted."""
    request = {"height": height, "width": width, "num_frames": frames}
    try:
        check_generation_size(**request, scale_factors=factors)
    except ShapeError as error:
        found = re.findall(r"(\w+)=-?\d+ .*?Nearest valid: ([\d, ]+)\.", str(error))
        assert found
        for choice in (0, -1):
            fixed = request | {name: int(values.split(", ")[choice]) for name, values in found}
            check_generation_size(**fixed, scale_factors=factors)


@pytest.mark.parametrize(
    ("text", "multiple", "asked", "rendered"),
    [
        ("854x480", 64, (480, 854), (512, 896)),
        ("480 X 854", 32, (854, 480), (864, 480)),
        ("720p", 64, (720, 1280), (768, 1280)),
        ("1080p-portrait", 64, (1920, 1080), (1920, 1088)),
        ("4K", 64, (2160, 3840), (2176, 3840)),
        ("1440p square", 64, (1440, 1440), (1472, 1472)),
    ],
)
def test_sizes_that_people_type(text, multiple, asked, rendered):
    assert frame_size(text) == asked
    assert rendered_size(*asked, multiple) == rendered


@pytest.mark.parametrize("text", ["", "720", "720p-tall", "0x", "axb", "720p-portrait-square"])
def test_sizes_that_nobody_knows_name_those_that_are(text):
    with pytest.raises(OptionError, match=r"WIDTHxHEIGHT.*720p.*-portrait"):
        frame_size(text)


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
