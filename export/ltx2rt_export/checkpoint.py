"""Find every part of a model on disk: which file holds it, its tensors, its configuration.

A model is one checkpoint (LTX-2, LTX-2.3) or one file per component (LTX-2.5), plus Gemma and the
upsamplers. Only headers are read, so opening a 46 GB file takes milliseconds.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx2rt.errors import CheckpointError
from ltx2rt.lora.files import open_lora
from ltx2rt.weights.safetensors import SafetensorsFile, TensorEntry
from ltx2rt_export.gemma_files import GemmaFiles, check_gemma_version, open_gemma
from ltx2rt_export.kinds import KINDS, detect_kind, split_components
from ltx2rt_export.layouts.open import holds_gemma, open_weights
from ltx2rt_export.storage_format import StorageFormat, detect_storage_format, with_encodings
from ltx2rt_export.version import ModelVersion, detect_version, read_config
from ltx2rt_export.weight_set import Weights, WeightSet, joined

StrPath = str | os.PathLike[str]
Tensors = Mapping[str, TensorEntry]

ROLES = (
    "transformer", "connectors", "text_projection", "text", "video_vae", "audio_vae", "vocoder",
    "duration_head", "gemma", "spatial_upsampler", "temporal_upsampler",
)  # fmt: skip

#: what a model cannot run without -> how to give it when the checkpoint lacks it
REQUIRED: dict[str, str] = {
    "transformer": "give a file that has it as the checkpoint",
    "connectors": "use a checkpoint that was not stripped",
    "text_projection": "give --text-encoder FILE",
    "video_vae": "give --video-vae FILE",
    "audio_vae": "give --audio-vae FILE",
    "vocoder": "give --audio-vae FILE",
    "gemma": "give --gemma DIR, or --text-encoder FILE for LTX-2.5",
}

#: kind of a file -> where it belongs
_FLAGS: dict[str, str] = {
    "checkpoint": "--checkpoint",
    "transformer": "--checkpoint",
    "video_vae": "--video-vae",
    "audio_vae": "--audio-vae",
    "vocoder": "--audio-vae",
    "text_encoder": "--text-encoder",
    "text_projection": "--text-encoder",
    "duration_head": "--duration-head",
    "spatial_upsampler": "--spatial-upsampler",
    "temporal_upsampler": "--temporal-upsampler",
    "lora": "--lora",
    "gemma": "--gemma",
    "latents": "--latents of `ltx2rt generate`",
    "embeddings": "--embeddings of `ltx2rt generate`",
}
_CONFIG_KEYS = {"video_vae": "vae", "connectors": "transformer", "text": "transformer"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelFiles:
    """A model on disk.

    Attributes:
        checkpoint: the file that holds the transformer.
        version: generation and defaults.
        files: role -> the file that holds it; `gemma` is in `gemma`.
        gemma: the text encoder; None when `open_model` was told not to need it.
        loras: adapters to fuse, in order.
        storage_format: how the transformer's weights are quantised; None for plain floats.
        warnings: things worth telling the user that are no errors.
    """

    checkpoint: Path
    version: ModelVersion
    files: Mapping[str, WeightSet]
    gemma: GemmaFiles | None
    loras: tuple[SafetensorsFile, ...]
    storage_format: StorageFormat | None
    warnings: tuple[str, ...]
    parts: Mapping[str, Tensors]

    def has(self, role: str) -> bool:
        """Whether the model has this part."""
        return bool(self.parts.get(role))

    @property
    def has_sound_encoder(self) -> bool:
        """Whether the audio VAE encodes: files of some converters hold its decoder alone."""
        return any(name.startswith("encoder.") for name in self.parts.get("audio_vae", {}))

    def tensors(self, role: str) -> Tensors:
        """Tensors of one part, without its prefix; {} when the model lacks an optional part.

        `text` is what the text encoder needs besides Gemma: connectors and projections under their
        official file names (`model.diffusion_model.video_embeddings_connector.…`,
        `text_embedding_projection.…`). `gemma` keeps its file names.
        """
        if role not in ROLES:
            raise KeyError(f"role {role!r}; known: {', '.join(ROLES)}")
        return self.parts.get(role, {})

    def config(self, role: str) -> dict[str, Any]:
        """The part's own object of the `config` metadata; {} for repacks without metadata.

        Connectors and text have keys in the transformer's object; where the connectors come from a
        file of their own, those of that file's object count.
        """
        source = "transformer" if role in {"connectors", "text", "scheduler"} else role
        file = self.files.get(source)
        if file is None:
            return {}
        config = read_config(file)
        if role.endswith("_upsampler"):
            return config
        own = config.get(_CONFIG_KEYS.get(role, role))
        found = own if isinstance(own, dict) else {}
        apart = self.files.get("connectors", file)
        if role in {"connectors", "text"} and apart is not file:
            more = read_config(apart).get("transformer")
            found = {**found, **(more if isinstance(more, dict) else {})}
        return found

    @property
    def gemma_config(self) -> Mapping[str, Any]:
        """The Hugging Face configuration of Gemma; {} without Gemma."""
        return self.gemma.config if self.gemma else {}

    @property
    def tokenizer_path(self) -> Path | None:
        """Path of `tokenizer.json`; None when packed in a file (see `GemmaFiles.read_asset`)."""
        return self.gemma.tokenizer_path if self.gemma else None


def open_model(
    checkpoint: StrPath,
    gemma: StrPath | None = None,
    spatial_upsampler: StrPath | None = None,
    temporal_upsampler: StrPath | None = None,
    video_vae: StrPath | None = None,
    audio_vae: StrPath | None = None,
    text_encoder: StrPath | None = None,
    duration_head: StrPath | None = None,
    loras: Sequence[StrPath] = (),
    *,
    audio_parts: Sequence[StrPath] = (),
    need: Collection[str] = tuple(REQUIRED),
) -> ModelFiles:
    """Resolve a model from its files and check that they belong together.

    Args:
        checkpoint: a monolithic checkpoint, the transformer file of a split model, or the folder of
            a diffusers model.
        gemma: a Gemma directory.
        spatial_upsampler, temporal_upsampler, duration_head: optional parts.
        video_vae, audio_vae: replace the checkpoint's own; the latter brings the vocoder.
        text_encoder: a packed Gemma with projections, a file of projections and connectors, or a
            monolith whose projections and connectors are taken.
        loras: adapters, in the order they are fused.
        audio_parts: further files of the audio VAE, where its parts lie apart.
        need: parts that must be found, from `REQUIRED`.

    Raises:
        CheckpointError: a file is broken or of another model, or parts are missing: all are named.
        UnsupportedError: weights are in a format that is not read, or Gemma is of another family.
    """
    main = _open_as(checkpoint, "checkpoint", ("checkpoint", "transformer"))
    given = {
        "video_vae": (video_vae, ("video_vae", "checkpoint")),
        "audio_vae": (audio_vae, ("audio_vae", "vocoder", "checkpoint")),
        "text_encoder": (text_encoder, ("text_encoder", "text_projection", "gemma", "checkpoint")),
        "duration_head": (duration_head, ("duration_head", "checkpoint")),
        "spatial_upsampler": (spatial_upsampler, ("spatial_upsampler",)),
        "temporal_upsampler": (temporal_upsampler, ("temporal_upsampler",)),
    }
    parts: dict[str, Tensors] = {}
    files: dict[str, WeightSet] = {}
    _take(main, (*REQUIRED, "duration_head"), parts, files)
    packed_gemma = None
    for role, (path, kinds) in given.items():
        if path is None:
            continue
        file = _open_as(path, role, kinds)
        if role == "text_encoder":
            _take(file, ("connectors", "text_projection"), parts, files)
            packed_gemma = path if "gemma" in split_components(file) else None
        elif role == "audio_vae":
            more = [_open_as(other, role, kinds) for other in audio_parts]
            file = joined([file, *more]) if more else file
            _take(file, ("audio_vae", "vocoder"), parts, files)
        elif role.endswith("_upsampler"):
            parts[role], files[role] = dict(file), file
        else:
            _take(file, (role,), parts, files)
    stored = detect_storage_format(parts.get("transformer", {}))
    parts = {role: with_encodings(tensors) for role, tensors in parts.items()}
    within = checkpoint if holds_gemma(Path(checkpoint)) else None
    encoder_path = gemma or packed_gemma or within
    encoder = open_gemma(encoder_path) if encoder_path else None
    if encoder is not None:
        encoder = dataclasses.replace(encoder, tensors=with_encodings(encoder.tensors))
        parts["gemma"] = encoder.tensors
    _check_complete(main, parts, need)
    version = detect_version(main, parts["transformer"], files.get("video_vae"))
    warning = None
    if encoder is not None:
        warning = check_gemma_version(main, encoder, version.generation)
        _check_gemma_size(encoder, parts.get("text_projection", {}))
    parts["text"] = {
        **{f"model.diffusion_model.{k}": e for k, e in parts.get("connectors", {}).items()},
        **parts.get("text_projection", {}),
    }
    made = ModelFiles(
        checkpoint=main.path,
        version=version,
        files=files,
        gemma=encoder,
        loras=tuple(_open_lora(path) for path in loras),
        storage_format=stored,
        warnings=(warning,) if warning else (),
        parts=parts,
    )
    if made.has("audio_vae") and not made.has_sound_encoder:
        without = (
            f"{files['audio_vae'].path} has no encoder of sound: what starts from sound (retakes, "
            "audio to video) needs --audio-vae with one"
        )
        made = dataclasses.replace(made, warnings=(*made.warnings, without))
    return made


def _open_as(path: StrPath, role: str, kinds: Collection[str]) -> WeightSet:
    file = open_weights(path)
    _check_kind(file, role, kinds)
    return file


def _open_lora(path: StrPath) -> SafetensorsFile:
    file = open_lora(path)
    _check_kind(file, "lora", ("lora",))
    return file


def _check_kind(file: Weights, role: str, kinds: Collection[str]) -> None:
    kind = detect_kind(file)
    if kind not in kinds:
        wanted = " or ".join(KINDS[k] for k in kinds)
        place = f" (give it as {_FLAGS[kind]})" if kind in _FLAGS else ""
        raise CheckpointError(
            f"--{role.replace('_', '-')} {file.path} is {KINDS[kind]}{place}; expected {wanted}."
        )


def _take(
    file: WeightSet,
    roles: Collection[str],
    parts: dict[str, Tensors],
    files: dict[str, WeightSet],
) -> None:
    for role, tensors in split_components(file).items():
        if role in roles:
            parts[role], files[role] = tensors, file


def _check_complete(main: WeightSet, parts: Mapping[str, Tensors], need: Collection[str]) -> None:
    problems = []
    for role in need:
        tensors = parts.get(role)
        if not tensors:
            problems.append(f"no {_words(role)}: {REQUIRED[role]}")
        elif role.endswith("_vae") and not any(name.startswith("decoder.") for name in tensors):
            problems.append(f"the {_words(role)} has no decoder: {REQUIRED[role]}")
    if problems:
        raise CheckpointError(f"the model of {main.path} is incomplete", problems)


def _words(role: str) -> str:
    return role.replace("_", " ").replace("vae", "VAE").replace("gemma", "Gemma")


def _check_gemma_size(gemma: GemmaFiles, projection: Tensors) -> None:
    """A projection reads all hidden states: its width is `(layers + 1) * hidden size`."""
    found = (gemma.num_layers + 1) * gemma.hidden_size
    for name, entry in projection.items():
        if name.endswith(".weight") and len(entry.shape) == 2 and entry.shape[1] != found:
            raise CheckpointError(
                f"{gemma.path} has {gemma.num_layers} layers of width {gemma.hidden_size}, which "
                f"gives {found} features; {name} of {entry.path} takes {entry.shape[1]}: give the "
                "Gemma size that the model was trained with (12B for the released ones)."
            )
