"""Open the weights that a user names, of one file or of several (shards), as one table of tensors.

Shards are told by their names (`model-00001-of-00002.safetensors`) or by an index that lists them;
any of them, the index, or the folder with nothing else in it stands for all. So does a folder of
parts: files of one model, each with other tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ltx2rt.errors import CheckpointError
from ltx2rt.file_kind import read_json_object, sentence_about
from ltx2rt.weights.safetensors import SafetensorsFile, TensorEntry, read_metadata

INDEX = ".safetensors.index.json"
#: encoder and decoder of a VAE need them both: files with one of each hold them twice
STATISTICS = "per_channel_statistics."
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


class WeightFile(Protocol):
    """What tells a file from others: `SafetensorsFile`, and files of other formats."""

    @property
    def path(self) -> Path: ...

    @property
    def file_bytes(self) -> int: ...

    @property
    def header_sha256(self) -> str: ...


@dataclass(frozen=True, slots=True, eq=False)
class WeightSet(Mapping[str, TensorEntry]):
    """Tensors of one or several files; a mapping from name to place.

    Attributes:
        path: what the user named.
        metadata: of the first file that has a `config`, else of the first file.
        files: those that are read.
        tensors: name -> place; the name in the file is the place's own.
    """

    path: Path
    metadata: Mapping[str, str]
    files: tuple[WeightFile, ...]
    tensors: Mapping[str, TensorEntry]

    @property
    def headers_sha256(self) -> str:
        """Digest of all that is known without reading a weight: headers, metadata, names."""
        facts = [
            [file.header_sha256 for file in self.files],
            dict(self.metadata),
            {name: entry.name for name, entry in self.tensors.items()},
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def __getitem__(self, name: str) -> TensorEntry:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


Weights = SafetensorsFile | WeightSet


def open_files(path: str | os.PathLike[str]) -> WeightSet:
    """Open a safetensors file, a set of shards by any of its files, or a folder of one of these.

    Raises:
        CheckpointError: something else is there (says what), shards are missing, or two of them
            hold the same tensor.
    """
    where = Path(path)
    files = [SafetensorsFile(place) for place in weight_files(where)]
    return weight_set(where, files)


def weight_set(where: Path, files: Sequence[SafetensorsFile]) -> WeightSet:
    """Files as one table; the index beside them, if any, says whether all are there."""
    tensors: dict[str, TensorEntry] = {}
    for file in files:
        shared = [n for n in tensors.keys() & file.keys() if STATISTICS not in n]
        if twice := sorted(shared):
            raise CheckpointError(
                f"{file.path} holds {twice[0]}, which {tensors[twice[0]].path.name} beside it "
                "holds too: they are not parts of one model."
            )
        tensors = {**file, **tensors}
    with_config = next((f for f in files if "config" in f.metadata), files[0])
    return WeightSet(where, with_config.metadata, tuple(files), tensors)


def joined(sets: Sequence[WeightSet]) -> WeightSet:
    """Parts of one model as one table; what is said of each part is said of all.

    Raises:
        CheckpointError: two of them hold the same tensor.
    """
    tensors: dict[str, TensorEntry] = {}
    config: dict[str, Any] = {}
    for part in sets:
        if twice := sorted(n for n in tensors.keys() & part.keys() if STATISTICS not in n):
            raise CheckpointError(
                f"{part.path} holds {twice[0]}, which {tensors[twice[0]].path} holds too: they are "
                "not parts of one model."
            )
        tensors = {**part.tensors, **tensors}
        own = read_metadata(part, "config")
        config = {**(own if isinstance(own, dict) else {}), **config}
    metadata = {**sets[0].metadata, "config": json.dumps(config)}
    files = tuple(file for part in sets for file in part.files)
    return WeightSet(sets[0].path, metadata, files, tensors)


def weight_files(where: Path) -> list[Path]:
    """The files that `where` stands for, in order.

    Raises:
        CheckpointError: see `open_files`.
    """
    try:
        if where.is_dir():
            return _of_folder(where)
        if where.name.endswith(INDEX):
            return _of_index(where)
    except OSError as error:
        raise CheckpointError(f"cannot read {where}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"cannot read {str(where)!r}: {error}") from error
    return _of_shard(where) if _SHARD.fullmatch(where.name) else [where]


def _of_folder(folder: Path) -> list[Path]:
    """All shards, or the only file; what else a folder may be is said."""
    indices = sorted(folder.glob(f"*{INDEX}"))
    if len(indices) == 1:
        return _of_index(indices[0])
    found = sorted(folder.glob("*.safetensors"))
    stems = {m["stem"] if (m := _SHARD.fullmatch(p.name)) else p.name for p in found}
    if len(stems) == 1:
        return weight_files(found[0])
    if _are_parts(found):
        return found
    raise CheckpointError(sentence_about(folder) or f"{folder} is a folder without weights.")


def _are_parts(files: list[Path]) -> bool:
    """Whether files are parts of one model: no tensor is in two of them, but for statistics."""
    if any(_SHARD.fullmatch(file.name) for file in files):
        return False
    names = [n for file in files for n in SafetensorsFile(file) if STATISTICS not in n]
    return bool(names) and len(names) == len(set(names))


def _of_index(index: Path) -> list[Path]:
    table = read_json_object(index).get("weight_map")
    names = set(table.values()) if isinstance(table, dict) else {}
    if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise CheckpointError(
            f"{index} is damaged: it has no `weight_map` from tensors to files beside it; download "
            "it again."
        )
    return _all_there([index.with_name(name) for name in sorted(names)], index)


def _of_shard(shard: Path) -> list[Path]:
    match = _SHARD.fullmatch(shard.name)
    assert match is not None
    stem, count = match["stem"], int(match["count"])
    index = shard.with_name(f"{stem}{INDEX}")
    if index.is_file():
        return _of_index(index)
    names = [f"{stem}-{n:05}-of-{count:05}.safetensors" for n in range(1, min(count, 9999) + 1)]
    return _all_there([shard.with_name(name) for name in names], shard)


def _all_there(files: list[Path], named: Path) -> list[Path]:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        shown = ", ".join(missing[:5]) + (" and more" if len(missing) > 5 else "")
        raise CheckpointError(
            f"{named} belongs to a model in {len(files)} files, of which {len(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not beside it: {shown}; download "
            f"{'it' if len(missing) == 1 else 'them'} into the same folder."
        )
    return files
