"""Generated keyframes are checked before anything is loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ltx2rt.config import GenerationConfig
from ltx2rt.errors import OptionError, UnsupportedError
from ltx2rt.latents.conditioning import GeneratedKeyframes
from ltx2rt.pipelines.engines import Engines
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.inputs import keyframe_items
from ltx2rt.pipelines.request import Request
from ltx2rt.progress import Job


def items(asked: Any, *, embedding: bool) -> list[Any]:
    source: Any = SimpleNamespace(
        has=lambda *names: True,
        options=lambda name: {"keyframes_embedding": embedding},
        model=SimpleNamespace(generation="LTX-2.3"),
    )
    config = GenerationConfig(prompt="a kite", num_frames=9, generated_keyframes=asked)
    return keyframe_items(Run(Engines(source), Request(config=config), Job()))


@pytest.mark.parametrize(
    ("asked", "indices"), [(1, [4]), (2, [3, 5]), ((7, 0, 7), [0, 7]), ((8,), [8])]
)
def test_counts_and_frames_become_one_item(asked: Any, indices: list[int]) -> None:
    (item,) = items(asked, embedding=True)
    assert isinstance(item, GeneratedKeyframes)
    assert list(item.frame_indices) == indices


def test_none_needs_no_embedding() -> None:
    assert items(0, embedding=False) == []


def test_a_model_without_the_embedding_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"LTX-2\.3 cannot make"):
        items(1, embedding=False)


@pytest.mark.parametrize("asked", [8, -1, (9,), (-1, 3)])
def test_frames_outside_the_clip_are_refused(asked: Any) -> None:
    with pytest.raises(OptionError, match="eyframe"):
        items(asked, embedding=True)
