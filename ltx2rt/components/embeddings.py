"""Text contexts in a file, so that the text encoder need not be there.

`video_context` and `audio_context` are `[N, S, C]` (or `[S, C]`), a prompt a row: the first
describes the clip, the second is the negative prompt. Files of ltx2rt say which prompts and which
text encoder they come from; the official files of the HDR pipeline hold the two tensors only. The
caches of musubi-tuner (`*_ltx2_te.safetensors`) hold the same tensors, of one caption, under names
that end in a dtype; their mask is not needed: every position is attended
(spec/text_encoder.md §4).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ltx2rt.components.text_encoder import TextContext
from ltx2rt.engine import Array
from ltx2rt.errors import CheckpointError, Field, OptionError, Problem
from ltx2rt.hub.reference import local_path
from ltx2rt.weights.safetensors import (
    MappedFiles,
    SafetensorsFile,
    TensorEntry,
    read_metadata,
)
from ltx2rt.weights.safetensors_writer import write_safetensors

_NAMES = ("video_context", "audio_context")
#: what caches of musubi-tuner call them, before their dtype
_CACHED = {"video_context": "video_prompt_embeds_", "audio_context": "audio_prompt_embeds_"}
#: the caption that a cache was made of, in its metadata
_CAPTION = "caption1"
_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsInfo:
    """Facts about a file of contexts.

    Attributes:
        rows: number of prompts.
        prompts: their texts; () where the file does not say.
        text_encoder: id of the encoder that made them; "" where the file does not say.
    """

    rows: int
    prompts: tuple[str, ...] = ()
    text_encoder: str = ""


def write_embeddings(
    path: str | Path, context: TextContext, prompts: Sequence[str], text_encoder: str
) -> None:
    """Write contexts and what they come from."""
    write_safetensors(
        path,
        {"video_context": context.video, "audio_context": context.audio},
        {"prompts": json.dumps(list(prompts)), "text_encoder": text_encoder},
    )


def check_embeddings(
    path: str | Path, widths: Mapping[str, int], text_encoder: str
) -> EmbeddingsInfo:
    """Read the header of a file of contexts and check that it fits a model.

    Args:
        path: safetensors.
        widths: `video_context`, `audio_context` -> their last dimension in the transformer.
        text_encoder: id of the bundle's text encoder; "" where it has none.

    Raises:
        CheckpointError: it is not such a file, or does not fit; lists every problem.
    """
    file = SafetensorsFile(local_path(path))
    problems, rows = [], set()
    for name in _NAMES:
        entry = _find(file, name)
        if entry is None:
            problems.append(_missing(file, name))
            continue
        if len(entry.shape) not in (2, 3) or 0 in entry.shape or entry.dtype not in _DTYPES:
            problems.append(
                f"{name} has shape {list(entry.shape)} and dtype {entry.dtype}; expected "
                "[prompts, tokens, width] of floats"
            )
            continue
        rows.add(entry.shape[0] if len(entry.shape) == 3 else 1)
        if entry.shape[-1] != widths[name]:
            problems.append(
                f"{name} is {entry.shape[-1]} wide; this model takes {widths[name]}: it was made "
                "for another model version"
            )
    if len(rows) > 1:
        problems.append("its two contexts are of different numbers of prompts")
    made_by = file.metadata.get("text_encoder", "")
    if made_by and text_encoder and made_by != text_encoder:
        problems.append(
            f"it was made by text encoder {made_by}, this bundle has {text_encoder}: save it again "
            "with this bundle"
        )
    prompts = [file.metadata[_CAPTION]] if _is_cache(file) and _CAPTION in file.metadata else None
    prompts = read_metadata(file, "prompts") if prompts is None else prompts
    listed = isinstance(prompts, list) and all(isinstance(p, str) for p in prompts)
    if prompts is not None and (not listed or (rows and len(prompts) not in rows)):
        problems.append("its list of prompts is damaged")
    if problems:
        raise CheckpointError(f"{path} cannot be used as text contexts", problems)
    return EmbeddingsInfo(rows=rows.pop(), prompts=tuple(prompts or ()), text_encoder=made_by)


def read_embeddings(path: str | Path, rows: int) -> TextContext:
    """The first `rows` contexts of a file that was checked, float32.

    Raises:
        OptionError: it holds fewer.
    """
    file, maps = SafetensorsFile(local_path(path)), MappedFiles()

    def load(name: str) -> Array:
        entry = _find(file, name)
        if entry is None:
            raise CheckpointError(f"{path} cannot be used as text contexts", [_missing(file, name)])
        values = maps.load(entry, "float32")
        values = values if values.ndim == 3 else values[None]
        if len(values) < rows:
            raise OptionError(
                Problem(
                    f"{path} holds {len(values)} prompt, but {rows} are needed: the second is the "
                    "negative prompt; save it with a guided pipeline, or switch cfg off (",
                    Field("guidance.video.cfg_scale"),
                    "=1, ",
                    Field("guidance.audio.cfg_scale"),
                    "=1).",
                )
            )
        copied: Array = values[:rows].copy()
        return copied

    return TextContext(*(load(name) for name in _NAMES))


def _is_cache(file: SafetensorsFile) -> bool:
    return any(name.startswith(_CACHED["video_context"]) for name in file)


def _find(file: SafetensorsFile, name: str) -> TensorEntry | None:
    """A context under its own name, or that of a cache."""
    if name in file:
        return file[name]
    cached = [n for n in file if n.startswith(_CACHED[name])]
    return file[cached[0]] if len(cached) == 1 else None


def _missing(file: SafetensorsFile, name: str) -> str:
    if _is_cache(file):
        return (
            f"it is a cache of musubi-tuner without {_CACHED[name]}*: cache again with --ltx2_mode "
            "av"
        )
    return f"it holds no {name}"
