"""What a program gives a pipeline by keyword, as the fields of a request have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ltx2rt.config import GenerationConfig, ImageCondition
from ltx2rt.errors import Field, OptionError, Problem
from ltx2rt.media.in_memory import image_file, sound_file
from ltx2rt.pipelines.options import GenerationOptions


class Change(TypedDict, total=False):
    """What one of several clips has otherwise than was asked for."""

    prompt: str
    seed: int


def from_memory(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `GenerationConfig`, images and sound that lie in memory as files.

    Raises:
        MediaError, ShapeError: see `image_file` and `sound_file`.
        OptionError: `images` is one image, or another thing that is no list.
    """
    found = dict(fields)
    if (images := fields.get("images")) is not None:
        if not isinstance(images, Sequence) or isinstance(images, str | bytes):
            raise OptionError(
                Problem(Field("images"), f" is a {type(images).__name__}, not a list of images")
            )
        found["images"] = tuple(map(_condition, images))
    audio = fields.get("audio")
    if isinstance(audio, bytes):
        found["audio"] = sound_file(audio)
    elif isinstance(audio, tuple) and len(audio) == 2 and isinstance(audio[0], np.ndarray):
        found["audio"] = sound_file(*audio)
    return found


def wanted_clips(
    config: GenerationConfig | None,
    options: GenerationOptions,
    seeds: Iterable[int] | None,
    prompts: Sequence[str] | None,
    num_videos: int | None,
) -> list[Change]:
    """What differs between several clips: seeds, and prompts if several are given.

    Args:
        config, options: what is asked for by object or by keyword; they name the first seed.
        seeds, prompts, num_videos: see `Pipeline.generate_many`.

    Raises:
        OptionError: seeds as well as their number, a number below 1, or no prompts.
    """
    if prompts is not None and (isinstance(prompts, str) or not prompts):
        raise OptionError(f"prompts={prompts!r} is not a list of prompts.")
    if num_videos is not None and (seeds is not None or num_videos < 1):
        raise OptionError(
            f"num_videos={num_videos} is not allowed: name either seeds or a number of clips, at "
            "least 1."
        )
    if seeds is None:
        first = config.seed if config is not None else options.get("seed", GenerationConfig().seed)
        seeds = range(first, first + (num_videos or 1))
    every = list(seeds)
    if prompts is None:
        return [{"seed": seed} for seed in every]
    return [{"prompt": prompt, "seed": seed} for prompt in prompts for seed in every]


def _condition(image: Any) -> Any:
    if isinstance(image, str | Path):
        return ImageCondition(path=Path(image))
    if isinstance(image, bytes | np.ndarray) or _is_of_pillow(image):
        return ImageCondition(path=image_file(image))
    return image  # a condition; whatever else it is, the request refuses it


def _is_of_pillow(image: Any) -> bool:
    from PIL.Image import Image

    return isinstance(image, Image)
