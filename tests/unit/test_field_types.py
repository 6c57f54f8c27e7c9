"""Arguments of a wrong type are one sentence; what means the same is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltx2rt.config import GenerationConfig, GuidanceConfig, ImageCondition, RuntimeConfig
from ltx2rt.errors import OptionError
from ltx2rt.lora.files import Lora
from ltx2rt.sampling.guidance import GuiderParams


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GenerationConfig(prompt=3), "prompt=3 is not text"),  # type: ignore[arg-type]
        (lambda: GenerationConfig(height=1.5), "height=1.5 is not a whole"),  # type: ignore[arg-type]
        (lambda: GenerationConfig(seed=True), "seed=True is not a whole number"),
        (lambda: GenerationConfig(images="x.png"), "images='x.png' is not a tuple"),  # type: ignore[arg-type]
        (lambda: GenerationConfig(loras=["x"]), "loras=.* is not a tuple of a Lora"),  # type: ignore[arg-type,list-item]
        (lambda: GenerationConfig(num_frames=None), "a whole number or an AutoDuration"),  # type: ignore[arg-type]
        (lambda: GuidanceConfig(video={}), "video={} is not a GuiderParams or None"),  # type: ignore[arg-type]
        (lambda: GuiderParams(cfg_scale="3"), "cfg_scale='3' is not a number"),  # type: ignore[arg-type]
        (lambda: RuntimeConfig(cuda_graphs=1), "cuda_graphs=1 is not True or False"),  # type: ignore[arg-type]
        (lambda: RuntimeConfig(threads=10**9), "is more than 1024"),
        (lambda: RuntimeConfig(record_paths="some"), "allowed: relative, absolute, none"),  # type: ignore[arg-type]
        (lambda: ImageCondition(path=None), "path=None is not a path"),  # type: ignore[arg-type]
        (lambda: Lora(path=b"x"), "path=b'x' is not text"),  # type: ignore[arg-type]
    ],
)
def test_wrong_types_are_named(make: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        make()


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(OptionError, match="3 problems") as error:
        GenerationConfig(prompt=1, seed="2", frame_rate=None)  # type: ignore[arg-type]
    assert len(error.value.problems) == 3


def test_what_means_the_same_is_taken() -> None:
    image = ImageCondition(path="x.png", frame=np.int64(1))  # type: ignore[arg-type]
    config = GenerationConfig(
        seed=np.int32(3),  # type: ignore[arg-type]
        frame_rate=25,
        images=[image],  # type: ignore[arg-type]
        sigmas=[1, np.float32(0.5), 0],  # type: ignore[arg-type]
        loras=(Lora(path=Path("l"), strength=1),),  # type: ignore[arg-type]
    )
    assert (type(config.seed), config.images, config.images[0].path) == (
        int,
        (image,),
        Path("x.png"),
    )
    assert config.sigmas == (1, 0.5, 0)
    assert config.loras[0].path == "l"
