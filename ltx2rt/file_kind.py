"""What a file or folder is that was given in place of another: told by first bytes and names.

Whatever opens a file and cannot use it asks here, so every message calls a thing by one name.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx2rt.user_files import open_regular, read_limited

#: enough for every signature, for the start of a text, and for no weights
_START_BYTES = 4096
#: index files of the largest models take a few MB
_MAX_JSON_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class FileKind:
    """What something is (`an HTML page`), and what to do instead of giving it."""

    name: str
    advice: str

    def sentence(self, path: Path) -> str:
        """Both, as one sentence about `path`."""
        return f"{path} is {self.name}: {self.advice}."


BUNDLE = FileKind("a bundle", "it is for `ltx2rt generate --bundle`, the files that it was made of "
                  "are for `ltx2rt build`")  # fmt: skip
DIFFUSERS = FileKind("a diffusers folder", "give it as --checkpoint of `ltx2rt build`")
GGUF = FileKind(
    "a GGUF file",
    "only `ltx2rt build` takes one: a transformer as --checkpoint, Gemma as --gemma; give a "
    ".safetensors file here",
)
NO_WEIGHTS = FileKind("a folder without weights", "give a .safetensors file")
_AGAIN = "download the file again"
_ARCHIVE = FileKind("a packed archive", "unpack it and give the .safetensors file inside")
_PICKLE = FileKind(
    "a PyTorch file (a pickle, which can run code)", "give the model's .safetensors file"
)
_TEXT_CACHE = FileKind(
    "a trainer's cache of a text, as SimpleTuner keeps it (a pickle, which can run code)",
    "give the prompt itself, which is encoded once and kept, or a cache of musubi-tuner "
    "(*_ltx2_te.safetensors)",
)
_CLIP_CACHE = FileKind(
    "a trainer's cache of a clip, as SimpleTuner keeps it (a pickle, which can run code)",
    "give the clip itself, or latents that ltx2rt or musubi-tuner (*_ltx2.safetensors) wrote",
)
#: what the description of a pickle holds -> whose it is
_CACHES = {b"prompt_embeds": _TEXT_CACHE, b"latents": _CLIP_CACHE}
_MAX_DESCRIPTION = 1 << 16
PICTURE = FileKind("a picture", "give a file of weights here")
CLIP = FileKind("a video or sound file", "give a file of weights here")

#: what files start with, at an offset
_SIGNATURES: tuple[tuple[int, bytes, FileKind], ...] = (
    (
        0,
        b"version https://git-lfs",
        FileKind("a Git LFS pointer, not the file itself", "run `git lfs pull` in its folder"),
    ),
    (0, b"GGUF", GGUF),
    (0, b"ftrt", FileKind("a TensorRT engine", "give the bundle that it belongs to")),
    (0, b"\x89HDF", FileKind("an HDF5 file (Keras)", "give the model's .safetensors file")),
    (0, b"\x93NUMPY", FileKind("a numpy array", "give a .safetensors file")),
    (0, b"\x1f\x8b", _ARCHIVE),
    (0, b"7z\xbc\xaf", _ARCHIVE),
    (0, b"Rar!", _ARCHIVE),
    (0, b"\x28\xb5\x2f\xfd", _ARCHIVE),
    (0, b"\x89PNG", PICTURE),
    (0, b"\xff\xd8\xff", PICTURE),
    (8, b"WEBP", PICTURE),
    (4, b"ftyp", CLIP),
    (0, b"\x1aE\xdf\xa3", CLIP),
    (8, b"WAVE", CLIP),
)  # fmt: skip
_UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".incomplete", ".aria2", ".tmp")
#: what model hubs answer as plain text in place of a file
_ANSWERS = re.compile(
    rb"(Access to (model|dataset) .* is restricted|Entry not found|Invalid (username|credentials)"
    rb"|Repository not found|Invalid rev|Not Found|Forbidden|Unauthorized|AccessDenied)",
    re.IGNORECASE,
)
_PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))


def kind_of(path: Path) -> FileKind | None:
    """Name what is at `path`; None for a safetensors file, and for what is not recognised.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    if path.is_dir():
        return _folder_kind(path)
    with open_regular(path) as file:
        start = file.read(_START_BYTES)
    if path.suffix.lower() in _UNFINISHED:
        return FileKind(f"an unfinished download ({path.suffix})", "let it finish, or start again")
    if not start:
        return FileKind("an empty file", _AGAIN)
    if not start.strip(b"\0"):
        return FileKind("a file of zeros (its download never finished)", _AGAIN)
    if start.startswith(b"\x1f\x8b") and path.suffix.lower() == ".pt":
        return FileKind("a compressed PyTorch file, as SimpleTuner keeps its caches",
                        "give the prompt or the clip itself")  # fmt: skip
    for offset, signature, kind in _SIGNATURES:
        if start[offset:].startswith(signature):
            return kind
    if start.startswith(b"PK\x03\x04"):
        return _pytorch_kind(path) or _ARCHIVE
    if start.startswith(_PICKLES):
        return _PICKLE
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return _json_kind(path)
    return _text_kind(start)


def sentence_about(path: Path) -> str | None:
    """`kind_of` as a sentence; None also for what cannot be read."""
    kind = _readable_kind(path)
    return kind.sentence(path) if kind else None


def name_of(path: Path, *, besides: Sequence[FileKind] = ()) -> str | None:
    """`kind_of` by its name alone, for places that want no weights but `besides`; None as there."""
    kind = _readable_kind(path)
    return kind.name if kind and kind not in besides else None


def _readable_kind(path: Path) -> FileKind | None:
    try:
        return kind_of(path)
    except (OSError, ValueError):
        return None


def _text_kind(start: bytes) -> FileKind | None:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<!--")):
        return FileKind(
            "an HTML page (what a site shows in place of the file: a login, a licence, an error)",
            "log in and accept the licence there, then download the file itself",
        )
    if text.startswith((b"<?xml", b"<error")):
        return FileKind("an error message of a file store (XML)", f"its link expired: {_AGAIN}")
    if found := _ANSWERS.match(start):
        said = found[0].decode("ascii", "replace")[:60]
        return FileKind(
            f"the answer of a model hub ({said!r})",
            "check its name, log in and accept its licence, then download it again",
        )
    # the length of a header, with which safetensors files begin, has bytes of 0
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start[:64]):
        return FileKind("a text file", "give a .safetensors file")
    return None


def _pytorch_kind(path: Path) -> FileKind | None:
    """What a zip file is to PyTorch; None when it is none of its."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if not pickles:
                return None
            with archive.open(pickles[0]) as file:
                start = file.read(_MAX_DESCRIPTION)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):
        suffixes = {".pt", ".pth", ".bin", ".ckpt", ".safetensors"}
        return _PICKLE if path.suffix.lower() in suffixes else None
    return next((kind for word, kind in _CACHES.items() if word in start), _PICKLE)


def _json_kind(path: Path) -> FileKind:
    content = read_json_object(path)
    if "weight_map" in content:
        return FileKind(
            "the index of a model in several files (shards)",
            "give the folder that it lies in, or its first shard",
        )
    if "_diffusers_version" in content:
        return FileKind(
            "the description of a diffusers model", "give the folder with its model_index.json"
        )
    if "model_type" in content:
        return FileKind(
            "the configuration of a text model", "give the folder that it lies in as --gemma"
        )
    return FileKind("a JSON text, not weights", "give a .safetensors file")


def _folder_kind(folder: Path) -> FileKind:
    if (folder / "manifest.json").is_file():
        return BUNDLE
    if (folder / "model_index.json").is_file():
        return DIFFUSERS
    if (folder / "adapter_config.json").is_file():
        return FileKind("the folder of a LoRA", "give it as --lora")
    config = read_json_object(folder / "config.json")
    if "_class_name" in config:
        return FileKind(
            f"one part ({config['_class_name']!s:.60}) of a diffusers folder",
            "give the folder above it, which has model_index.json, as --checkpoint",
        )
    if "model_type" in config:
        family = f"{config['model_type']!s:.40}"
        advice = "give it as --gemma" if family.startswith("gemma") else "it is no part of LTX-2"
        return FileKind(f"the folder of a text model ({family})", advice)
    if (folder / "snapshots").is_dir():
        return FileKind("a folder of the model hub's cache", "give the folder in its snapshots/")
    weights = sorted(p.name for p in folder.glob("*.safetensors"))
    if not weights:
        return NO_WEIGHTS
    shown = ", ".join(weights[:5]) + (f" and {len(weights) - 5} more" if len(weights) > 5 else "")
    return FileKind(f"a folder with {shown}", "give one of its files")


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is none of a sensible size."""
    try:
        value = json.loads(read_limited(path, _MAX_JSON_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
