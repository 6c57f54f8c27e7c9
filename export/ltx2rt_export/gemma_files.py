"""The text encoder's files: a Hugging Face directory, or one packed file with tokenizer inside.

Layouts: spec/checkpoints.md §5; version checks: spec/text_encoder.md §7. Files of ComfyUI and
llama.cpp have no configuration: `layouts.gemma_single`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt.file_kind import NO_WEIGHTS, kind_of, read_json_object
from ltx2rt.user_files import read_limited
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry, read_metadata
from ltx2rt_export.gemma_tokenizer import sentencepiece_vocabulary, tokenizer_json
from ltx2rt_export.kinds import KINDS, SPIECE, detect_kind, is_gemma, split_components
from ltx2rt_export.layouts.gemma_single import gguf_vocabulary, inferred_config, open_gguf_gemma
from ltx2rt_export.layouts.open import holds_gemma, open_weights
from ltx2rt_export.modules.gemma_config import gemma_root
from ltx2rt_export.version import parse_model_version, read_version_text
from ltx2rt_export.weight_set import WeightFile, Weights, WeightSet

TOKENIZER = "tokenizer.json"

FAMILIES = ("gemma3", "gemma4", "gemma4_unified")


@dataclass(frozen=True, slots=True, eq=False)
class GemmaFiles:
    """A Gemma text encoder on disk.

    Attributes:
        path: the directory or the packed file.
        config: the Hugging Face configuration.
        tensors: all weights under their file names, of all shards; assets are not among them.
        assets: small files by name (`tokenizer.json`, `tokenizer_config.json`, ...): a path, or the
            tensor or metadata string that holds them.
        files: the weight files.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    assets: Mapping[str, Path | TensorEntry | str]
    files: tuple[WeightFile, ...]

    @property
    def tokenizer_path(self) -> Path | None:
        """Path of `tokenizer.json`; None when it is packed into the weight file."""
        asset = self.assets.get(TOKENIZER)
        return asset if isinstance(asset, Path) else None

    def read_asset(self, name: str) -> bytes | None:
        """Content of a small file, e.g. `tokenizer.json`; None when the encoder has none."""
        asset = self.assets.get(name)
        if asset is None:
            return self._made_tokenizer() if name == TOKENIZER else None
        if isinstance(asset, str):
            return asset.encode()
        if isinstance(asset, Path):
            return _read_bytes(asset)
        return MappedFiles().raw(asset).tobytes()

    def _made_tokenizer(self) -> bytes | None:
        """`tokenizer.json` made from what single files hold instead; None if there is nothing."""
        if self.path.suffix.lower() == ".gguf":
            return tokenizer_json(gguf_vocabulary(self.path), str(self.path))
        model = self.read_asset(SPIECE)
        if model is None:
            return None
        where = f"{SPIECE} of {self.path}"
        return tokenizer_json(sentencepiece_vocabulary(model, where), where)

    @property
    def hidden_size(self) -> int:
        """Width of the embeddings, from the tensors."""
        return self._embeddings().shape[-1]

    @property
    def num_layers(self) -> int:
        """Number of decoder layers, from the tensors."""
        pattern = re.compile(r"\.layers\.(\d+)\.post_feedforward_layernorm")
        found = [int(m[1]) for name in self.tensors if (m := pattern.search(name))]
        return max(found, default=-1) + 1

    def _embeddings(self) -> TensorEntry:
        for name, entry in self.tensors.items():
            if name.endswith("embed_tokens.weight") and len(entry.shape) == 2:
                return entry
        raise CheckpointError(f"{self.path} has no embed_tokens.weight: shards are missing.")


def open_gemma(path: str | os.PathLike[str]) -> GemmaFiles:
    """Open a Gemma directory or a packed text-encoder file.

    Raises:
        CheckpointError: files are missing or it is not Gemma; all problems are listed.
        UnsupportedError: it is a Gemma family that cannot encode prompts for this model.
    """
    where = Path(path)
    if where.suffix.lower() == ".gguf":
        found = open_gguf_gemma(where)
        gemma = GemmaFiles(where, found.config, found.tensors, {}, (found.file,))
    elif where.is_dir():
        gemma = _open_directory(where)
    else:
        gemma = _open_packed(open_weights(where))
    family = gemma.config.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedError(
            f"{where} has model_type={family!r}; a text encoder must be {', '.join(FAMILIES)}."
        )
    if not is_gemma(gemma.tensors):
        raise CheckpointError(f"{where} says it is {family} but its tensors are not Gemma's.")
    return gemma


def _open_directory(root: Path) -> GemmaFiles:
    """A folder of Gemma; in one of diffusers, its text encoder with the tokenizer beside it."""
    own = root / "text_encoder" if holds_gemma(root) else root
    beside = own.with_name("tokenizer")
    folders = (beside, own) if own.name == "text_encoder" else (own,)
    tokenizers = [p for place in folders if (p := _first(place, "tokenizer.json"))]
    found = {
        "config.json": _first(own, "config.json"),
        "tokenizer.json": tokenizers[0] if tokenizers else None,
    }
    weights = _first(own, "model*.safetensors")
    problems = [f"{name} is missing" for name, file in found.items() if file is None]
    if weights is None:
        others = sorted(p.name for p in root.iterdir() if p.suffix in {".gguf", ".bin", ".pth"})
        problems.append(
            "model*.safetensors is missing" + (f" (found {others[0]})" if others else "")
        )
    if weights is None or problems:
        other = kind_of(root)
        is_one = read_json_object(own / "config.json").get("model_type") in FAMILIES
        if weights is None and not is_one and other not in (None, NO_WEIGHTS):
            raise CheckpointError(other.sentence(root))
        raise CheckpointError(f"{root} is not a Gemma directory", problems)
    folder = weights.parent
    files = [SafetensorsFile(p) for p in sorted(folder.glob("*.safetensors"))]
    tensors: dict[str, TensorEntry] = {}
    for file in files:
        tensors.update(file)
    missing = _missing_shards(folder, tensors)
    if missing:
        raise CheckpointError(f"{folder} is incomplete", missing)
    assets: dict[str, Path | TensorEntry | str] = {}
    for place in folders:
        for pattern in ("*.json", "chat_template.jinja"):
            for file_path in sorted(place.rglob(pattern), key=_depth_first_key, reverse=True):
                assets[file_path.name] = file_path
    config = _parse_object(_read_bytes(Path(str(found["config.json"]))), f"{root}/config.json")
    return GemmaFiles(root, config, tensors, assets, tuple(files))


def _open_packed(file: WeightSet) -> GemmaFiles:
    parts = split_components(file)
    tensors, packed = parts.get("gemma", {}), parts.get("assets", {})
    config = read_metadata(file, "gemma_config")
    assets: dict[str, Path | TensorEntry | str] = {
        name: text for name, text in file.metadata.items() if name.endswith((".json", ".jinja"))
    }
    for name, entry in packed.items():
        own = name.removeprefix("hf_asset__")
        assets[TOKENIZER if name == "tokenizer_json" else own] = entry
    if config is None and tensors:
        config = inferred_config(tensors, gemma_root(tensors))
    problems = []
    if not isinstance(config, dict):
        problems.append("its metadata has no `gemma_config`, and it is no Gemma 3")
    if TOKENIZER not in assets and SPIECE not in assets:
        problems.append(f"it has no `tokenizer_json` tensor, and no `{SPIECE}`")
    if not tensors:
        raise CheckpointError(
            f"--gemma {file.path} is {KINDS[detect_kind(file)]}; expected Gemma weights: its "
            "folder, or one file."
        )
    if problems:
        raise CheckpointError(f"{file.path} is not a text encoder file", problems)
    return GemmaFiles(file.path, dict(config), tensors, assets, file.files)


def check_gemma_version(checkpoint: Weights, gemma: GemmaFiles, generation: str) -> str | None:
    """Check that a Gemma belongs to a checkpoint.

    Args:
        generation: of the checkpoint; decides when its metadata says nothing.

    Returns:
        a warning to show, or None.

    Raises:
        CheckpointError: it is the Gemma of another generation.
    """
    declared = gemma.config.get("gemma_version")
    source = read_metadata(checkpoint, "gemma_source_checkpoint")
    if isinstance(source, dict):
        wanted = source.get("gemma_version")
        if declared is None and gemma.path.suffix.lower() == ".gguf":
            return (
                f"{checkpoint.path} needs Gemma version {wanted!r}, a fine-tune for it, and "
                f"{gemma.path} does not say which it is: with another, clips do not follow prompts"
            )
        if wanted != declared:
            raise CheckpointError(
                f"{checkpoint.path} needs Gemma version {wanted!r}, but {gemma.path} is "
                f"{declared!r}: give the text encoder that was published with the checkpoint."
            )
        return None
    number = parse_model_version(read_version_text(checkpoint), dash_is_dot=False)
    if number >= (2, 4):
        if declared is not None:
            raise CheckpointError(
                f"{gemma.path} is Gemma version {declared!r}, but {checkpoint.path} does not say "
                "which Gemma it was trained with: give a matching pair."
            )
        return f"neither {checkpoint.path} nor {gemma.path} says which Gemma version it needs."
    family = gemma.config.get("model_type")
    if generation != "LTX-2.5" and family != "gemma3":
        raise CheckpointError(
            f"{checkpoint.path} is {generation}, which needs Gemma 3, but {gemma.path} has "
            f"model_type={family!r}."
        )
    return None


def _first(root: Path, pattern: str) -> Path | None:
    return min(root.rglob(pattern), key=_depth_first_key, default=None)


def _depth_first_key(path: Path) -> tuple[int, str]:
    return len(path.parts), str(path)


def _missing_shards(folder: Path, tensors: Mapping[str, TensorEntry]) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    listed = _parse_object(_read_bytes(index), str(index)).get("weight_map")
    if not isinstance(listed, dict):
        raise CheckpointError(f"{index} is corrupt: it has no `weight_map`.")
    shards = {str(shard) for name, shard in listed.items() if name not in tensors}
    return [f"{shard} is missing or lacks tensors" for shard in sorted(shards)]


#: of a small file beside weights; the tokenizer has some 35 MB
_MAX_ASSET_BYTES = 500_000_000


def _read_bytes(path: Path) -> bytes:
    try:
        return read_limited(path, _MAX_ASSET_BYTES)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"cannot read {str(path)!r}: {error}") from error


def _parse_object(text: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is corrupt: it is not JSON.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is corrupt: it is not a JSON object.")
    return value
