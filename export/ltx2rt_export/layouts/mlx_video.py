"""Folders that mlx-video converts official files to: a part in each sub-folder, laid out for MLX.

Its converter renames modules and stores the channels of convolutions last; both are taken back
here, the first by name, the second when weights are read. It keeps no metadata and no encoder of
sound, and the transformer in bfloat16.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt.weights.codecs.stored import CHANNELS_LAST, CHANNELS_LAST_TRANSPOSED
from ltx2rt.weights.safetensors import Encoding, TensorEntry
from ltx2rt_export.weight_set import WeightSet, open_files

_NEEDED = ("transformer", "vae/decoder", "audio_vae/decoder", "vocoder", "text_projections")
_OPTIONAL = ("vae/encoder", "audio_vae/encoder")
_CONNECTOR = re.compile(r"(video|audio)_embeddings_connector\.")
_MODULES = (
    (re.compile(r"\.to_out\.(?=weight|bias)"), ".to_out.0."),
    (re.compile(r"\.((?:audio_)?ff)\.proj_in\."), r".\1.net.0.proj."),
    (re.compile(r"\.((?:audio_)?ff)\.proj_out\."), r".\1.net.2."),
    (re.compile(r"\.linear([12])\."), r".linear_\1."),
)
#: a second `.conv`, which decoders of pictures have where no list precedes it
_WRAPPED = re.compile(r"(?<=\.)([a-z]\w*)\.conv\.conv\.(?=weight$|bias$)")
#: what no other layout has
_OWN_NAMES = ("transformer_blocks.0.audio_ff.proj_in.weight", "conv_in.conv.conv.weight")
_STATISTIC = re.compile(r"per_channel_statistics\._?(mean|std)(_of_means)?$")


def is_mlx_video(folder: Path) -> bool:
    """Whether a folder is one of these, or a part of one."""
    return (folder / "text_projections").is_dir() and (folder / "transformer").is_dir()


def open_mlx_video(folder: Path) -> WeightSet:
    """All parts as one official checkpoint without metadata; Gemma is not among them.

    Raises:
        CheckpointError: parts are missing or broken.
        UnsupportedError: the weights are quantised for MLX.
    """
    missing = [name for name in _NEEDED if not (folder / name).is_dir()]
    if missing:
        raise CheckpointError(
            f"{folder} is a folder of mlx-video without {', '.join(missing)}: convert it again, or "
            "take the official file."
        )
    parts = {
        name: open_files(folder / name)
        for name in (*_NEEDED, *_OPTIONAL)
        if name in _NEEDED or (folder / name).is_dir()
    }
    tensors: dict[str, TensorEntry] = {}
    for place, part in parts.items():
        if quantised := next((n for n in part if n.endswith((".scales", ".biases"))), None):
            raise UnsupportedError(
                f"{folder / place} is quantised for MLX ({quantised}), which is not read: take the "
                "official file, and quantise it with `ltx2rt build --precision`."
            )
        for name, entry in part.items():
            official = _SPELLINGS[place.partition("/")[0]](name, place)
            tensors[official] = dataclasses.replace(_official(entry, place), name=official)
    files = tuple(file for part in parts.values() for file in part.files)
    return WeightSet(folder, {}, files, tensors)


def refuse_part(weights: WeightSet) -> None:
    """Refuse the transformer, or the decoder of pictures, of such a folder given alone.

    Raises:
        CheckpointError: it is one.
    """
    if any(name in weights for name in _OWN_NAMES):
        raise CheckpointError(
            f"{weights.path} is a part of LTX-2 for MLX, with names of its own: give the folder of "
            "mlx-video that it lies in as --checkpoint."
        )


def _modules(name: str) -> str:
    for pattern, spelled in _MODULES:
        name = pattern.sub(spelled, name)
    return name


def _transformer(name: str, place: str) -> str:
    return f"model.diffusion_model.{_modules(name)}"


def _text(name: str, place: str) -> str:
    is_connector = _CONNECTOR.match(name)
    return (
        f"model.diffusion_model.{_modules(name)}"
        if is_connector
        else (f"text_embedding_projection.{name}")
    )


def _vae(name: str, place: str) -> str:
    part, _, side = place.partition("/")
    if match := _STATISTIC.search(name):
        return f"{part}.per_channel_statistics.{match[1]}-of-means"
    if place == "vae/decoder":
        name = _WRAPPED.sub(r"\1.conv.", f".{name}")[1:]
    return f"{part}.{side}.{name}"


_SPELLINGS: dict[str, Callable[[str, str], str]] = {
    "transformer": _transformer,
    "text_projections": _text,
    "vae": _vae,
    "audio_vae": _vae,
    "vocoder": lambda name, place: f"vocoder.{name}",
}


def _official(entry: TensorEntry, place: str) -> TensorEntry:
    """A convolution's weight in the official order of axes; other tensors as they are."""
    rank, name = len(entry.shape), entry.name
    if not name.endswith(".weight"):
        return entry
    is_conv = (place == "vocoder" and rank == 3) or (
        place.startswith(("vae", "audio_vae")) and rank in (4, 5) and "conv" in name.lower()
    )
    if not is_conv or (place == "vae/decoder" and not name.endswith(".conv.weight")):
        return entry
    transposed = place == "vocoder" and "ups" in name
    *outer, last = entry.shape
    shape = (last, *outer) if transposed else (outer[0], last, *outer[1:])
    encoding = Encoding(
        format=CHANNELS_LAST_TRANSPOSED if transposed else CHANNELS_LAST,
        shape=entry.shape,
        group=1,
        parts={},
    )
    return dataclasses.replace(entry, shape=shape, encoding=encoding)
