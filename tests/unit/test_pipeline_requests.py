"""Requests of the pipelines with inputs of their own: what is missing or means nothing is refused
in one message.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ltx2rt.config import GenerationConfig, ImageCondition
from ltx2rt.errors import OptionError, UnsupportedError
from ltx2rt.latents.duration import AutoDuration
from ltx2rt.pipelines.audio_to_video import AudioToVideoPipeline
from ltx2rt.pipelines.base import Pipeline
from ltx2rt.pipelines.request import Request
from ltx2rt.pipelines.retake import RetakePipeline
from ltx2rt.pipelines.retake_inputs import RetakeInputs, TimeWindow
from ltx2rt.pipelines.upscale import UpscaleInputs


def source(*parts: str) -> Any:
    """A model with everything but a duration head, or with these parts."""
    return SimpleNamespace(
        has=lambda *names: all(n in parts if parts else n != "duration_head" for n in names),
        options=lambda name: {"keyframes_embedding": False, "num_layers": 2},
        model=SimpleNamespace(
            generation="LTX-2.3", is_distilled=None, time_scale=8, spatial_scale=32
        ),
    )


class Plain(Pipeline):
    name = "plain"
    requires = ()
    auto_duration = True


def test_all_problems_of_the_keywords_at_once() -> None:
    pipe = RetakePipeline(source())
    given = {"prompt": "a", "height": 64, "fps": 24, "start_time": 0.0}
    with pytest.raises(OptionError) as error:
        pipe.make_request(None, None, None, given)
    for part in (
        "fps is not an option",
        "it has no use for height",
        "it needs video",
    ):
        assert part in str(error.value)
    assert "it needs start_time" not in str(error.value)
    with pytest.raises(OptionError, match="it needs end_time"):
        pipe.make_request(
            None, None, None, {"prompt": "a", "video": Path("a.mp4"), "start_time": 0}
        )


def test_keywords_or_an_object() -> None:
    pipe = RetakePipeline(source())
    own = RetakeInputs(video=Path("a.mp4"), start_time=0, end_time=1.0)
    words = {"prompt": "a", "video": Path("a.mp4"), "start_time": 0, "end_time": 1.0}
    assert pipe.make_request(None, None, None, words).inputs == own
    assert pipe.make_request(None, None, own, {"prompt": "a"}).inputs is own
    with pytest.raises(OptionError, match="video was given beside inputs"):
        pipe.make_request(None, None, own, words)
    other = UpscaleInputs(source=Path("a.mp4"))
    with pytest.raises(OptionError, match="inputs of type UpscaleInputs are not for this pipeline"):
        pipe.make_request(None, None, other, {"prompt": "a"})


def test_fields_of_a_config_that_mean_nothing() -> None:
    image = ImageCondition(path=Path("x.png"))
    config = GenerationConfig(
        prompt="a", images=(image,), generated_keyframes=1, audio=Path("a.wav")
    )
    with pytest.raises(OptionError, match="it has no use for generated_keyframes"):
        AudioToVideoPipeline(source()).prepare(Request(config=config))


def test_sound_decides_the_length_unless_frames_are_named() -> None:
    pipe = AudioToVideoPipeline(source())

    def frames(**given: Any) -> Any:
        return pipe.make_request(None, None, None, {"prompt": "a", **given}).config.num_frames

    assert isinstance(frames(audio=Path("a.wav")), AutoDuration)
    assert frames(audio=Path("a.wav"), num_frames=9) == 9
    assert frames() == 121
    with pytest.raises(OptionError, match="audio_start_time means nothing without audio"):
        GenerationConfig(prompt="a", audio_start_time=1.0)


def test_automatic_duration_needs_a_head_and_a_range() -> None:
    config = GenerationConfig(prompt="a", height=64, width=64, num_frames=AutoDuration())
    with pytest.raises(UnsupportedError, match=r"needs a duration head.*bundle of LTX-2\.3"):
        Plain(source()).prepare(Request(config=config))
    request = Request(config=config)
    assert Plain(source("duration_head")).prepare(request) is request
    narrow = GenerationConfig(
        prompt="a", height=64, width=64, num_frames=AutoDuration(min_s=0.4, max_s=0.5)
    )
    with pytest.raises(OptionError, match=r"no 8k\+1 between"):
        Plain(source("duration_head")).prepare(Request(config=narrow))

    class Fixed(Plain):
        auto_duration = False

    with pytest.raises(OptionError, match="cannot choose its duration"):
        Fixed(source("duration_head")).prepare(request)


def test_generated_keyframes_are_refused_before_the_prompt_is_encoded() -> None:
    config = GenerationConfig(prompt="a", height=64, width=64, generated_keyframes=1)
    with pytest.raises(UnsupportedError, match=r"LTX-2\.3 cannot make"):
        Plain(source()).prepare(Request(config=config))


@pytest.mark.parametrize(
    ("start", "end"), [(-1, 1), (1, 1), (2, 1), (float("nan"), 1), (0, float("inf"))]
)
def test_retake_window(start: float, end: float) -> None:
    with pytest.raises(OptionError, match="are not 0 <= start < end"):
        RetakeInputs(video=Path("a.mp4"), start_time=start, end_time=end)


WHOLE = (0, float("inf"))


@pytest.mark.parametrize(
    ("given", "video", "audio"),
    [
        ({"start_time": 1, "end_time": 2}, [(1, 2)], [(1, 2)]),
        ({"start_time": 1, "end_time": 2, "regenerate_audio": False}, [(1, 2)], []),
        ({"video_parts": (TimeWindow(start=3, end=4),)}, [(3, 4)], []),
        (
            {"start_time": 1, "end_time": 2, "audio_parts": (TimeWindow(start=3, end=4),)},
            [(1, 2)],
            [(1, 2), (3, 4)],
        ),
        ({"mask": Path("m.png")}, [WHOLE], []),
        ({"mask": Path("m.png"), "start_time": 1, "end_time": 2}, [(1, 2)], []),
        ({"outpaint": "720p", "audio_parts": (TimeWindow(start=0, end=1),)}, [WHOLE], [(0, 1)]),
        ({"denoise_strength": 0.5}, [WHOLE], [WHOLE]),
        ({"denoise_strength": 0.5, "regenerate_audio": False}, [WHOLE], []),
    ],
)
def test_what_a_retake_makes_anew(given: Any, video: Any, audio: Any) -> None:
    own = RetakeInputs(video=Path("a.mp4"), **given)
    assert [(w.start, w.end) for w in own.windows("video")] == video
    assert [(w.start, w.end) for w in own.windows("audio")] == audio


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({}, "say what is made anew: start_time and end_time, parts, a mask"),
        ({"end_time": 1}, "it needs start_time"),
        ({"denoise_strength": 0}, "denoise_strength=0 is not above 0"),
        ({"outpaint": "4k", "start_time": 0, "end_time": 1}, "it takes no parts in time"),
        ({"outpaint": "big"}, "a size of 'big' is not known"),
        (
            {"video_parts": (TimeWindow(start=0, end=1),), "regenerate_video": False},
            "leaves nothing to make anew",
        ),
    ],
)
def test_retakes_that_say_nothing_or_too_much(given: Any, part: str) -> None:
    with pytest.raises(OptionError, match=part):
        RetakeInputs(video=Path("a.mp4"), **given)
