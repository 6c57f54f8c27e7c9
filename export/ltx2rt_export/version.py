"""Model versions: what a checkpoint says it is, what its tensors say, and the defaults that follow.

Rules: spec/checkpoints.md §3, spec/pipelines.md §0.8.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ltx2rt.errors import CheckpointError
from ltx2rt.lora.describe import distilled_hint
from ltx2rt.weights.safetensors import read_metadata
from ltx2rt_export.weight_set import Weights

Number = tuple[int, ...]

GENERATIONS: dict[str, Number] = {"LTX-2": (2,), "LTX-2.3": (2, 3), "LTX-2.5": (2, 5)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """Version of a model and the defaults it implies.

    Attributes:
        generation: `LTX-2`, `LTX-2.3` or `LTX-2.5`.
        text: the file's own `model_version`; empty when it has none.
        number: its leading integers; without metadata, those of the generation.
        image_crf: default compression of conditioning images; from the video VAE's version.
        is_distilled: a hint from the names of file and folder; None when they say nothing.
    """

    generation: str
    text: str
    number: Number
    num_inference_steps: int
    stg_block: int
    image_crf: int
    distilled_sampler: Literal["euler", "euler_ancestral"]
    is_distilled: bool | None


def parse_model_version(text: str | None, *, dash_is_dot: bool = True) -> Number:
    """Read the leading integers: `2.3.rc1` is (2, 3), `2.4-rc2` is (2, 4), nothing is ().

    The Gemma version check reads with `dash_is_dot=False`: there `2.4-rc2` counts as (2,).
    """
    number: list[int] = []
    for part in (text or "").replace("-", "." if dash_is_dot else "-").split("."):
        if not (part.isascii() and part.isdigit()) or len(part) > 9:
            break
        number.append(int(part))
    return tuple(number)


def read_config(file: Weights) -> dict[str, Any]:
    """The `config` metadata as an object; {} for repacks without metadata.

    Raises:
        CheckpointError: it is there but is not a JSON object.
    """
    config = read_metadata(file, "config")
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise CheckpointError(f"{file.path} is corrupt: its `config` metadata is no JSON object.")
    return config


def read_version_text(file: Weights) -> str:
    """The `model_version` metadata; empty when absent."""
    value = read_metadata(file, "model_version")
    return value if isinstance(value, str) else file.metadata.get("model_version", "")


def generation_of_tensors(names: Container[str]) -> str | None:
    """Tell the generation from transformer tensor names (prefix removed); None when unknown."""
    block = "transformer_blocks.0."
    if f"{block}attn1.to_q.weight" not in names:
        return None
    if "keyframes_abs_pos_embedding" in names or f"{block}ff.net.0.proj.bias" not in names:
        return "LTX-2.5"
    gated = f"{block}attn1.to_gate_logits.weight", f"{block}prompt_scale_shift_table"
    if any(name in names for name in gated):
        return "LTX-2.3"
    return "LTX-2" if "caption_projection.linear_1.weight" in names else None


def detect_version(
    transformer_file: Weights,
    transformer: Mapping[str, Any],
    video_vae_file: Weights | None,
) -> ModelVersion:
    """Version of a model from metadata, or from tensor names when there is no metadata.

    Args:
        transformer_file: the file the transformer is in.
        transformer: its tensors, prefix removed.
        video_vae_file: the file the video VAE is in; may be the same; None when there is none.

    Raises:
        CheckpointError: neither says which generation it is.
    """
    text = read_version_text(transformer_file)
    number = parse_model_version(text)
    generation = generation_of_number(number) if number else generation_of_tensors(transformer)
    if generation is None:
        raise CheckpointError(
            f"{transformer_file.path} has no `model_version` and its tensors fit none of "
            f"{', '.join(GENERATIONS)}."
        )
    number = number or GENERATIONS[generation]
    vae_number = number
    if video_vae_file is not None and video_vae_file.path != transformer_file.path:
        vae_number = parse_model_version(read_version_text(video_vae_file))
    newer = number >= (2, 3)
    return ModelVersion(
        generation=generation,
        text=text,
        number=number,
        num_inference_steps=30 if newer else 40,
        stg_block=28 if newer else 29,
        image_crf=18 if vae_number >= (2, 4) else 33,
        distilled_sampler="euler_ancestral" if number >= (2, 5) else "euler",
        is_distilled=_is_distilled(transformer_file.path),
    )


def _is_distilled(path: Path) -> bool | None:
    """By the name; in diffusers folders of LTX-2.5 `transformer` is distilled, beside the full
    model in `transformer_full`.
    """
    hint = distilled_hint(path.name)
    if hint is not None:
        return hint
    if (path / "transformer_full").is_dir():
        return True
    part = path if path.is_dir() else path.parent
    pair = ("transformer", "transformer_full")
    if part.name in pair and all(part.with_name(name).is_dir() for name in pair):
        return part.name == "transformer"
    return None


def generation_of_number(number: Number) -> str:
    """Name the parameter set of a version; an unknown newer version takes the newest one."""
    if number >= (2, 4):
        return "LTX-2.5"
    return "LTX-2.3" if number >= (2, 3) else "LTX-2"
