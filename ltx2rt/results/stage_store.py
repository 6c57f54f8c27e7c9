"""Finished stages kept in a folder, so that a killed run goes on from the last one.

One safetensors file a stage holds its latents and the state of the random generator after it; its
metadata says for which request. A run that goes on with as many threads gives bit-equal latents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.errors import CheckpointError, Field, OptionError, Problem
from ltx2rt.partial import remove_all_leftovers
from ltx2rt.plain_data import named_files, parse_json
from ltx2rt.results.record import Record, changes, flattened, request_key
from ltx2rt.sampling.gpu_noise import Generator
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from ltx2rt.weights.safetensors_writer import write_safetensors

_SUFFIX = ".stage.safetensors"
_GENERATOR = "generator"


class StageStore:
    """The finished stages of one request.

    Args:
        folder: made if it is missing.
        record: the request, and what runs it.
        resume: take over the stages that are there; otherwise they are removed.

    Raises:
        OptionError: the stages are those of another request, and how they differ; or a file is
            damaged.
    """

    def __init__(self, folder: Path, record: Record, *, resume: bool) -> None:
        self.folder = folder
        self._key = _key_of(record)
        folder.mkdir(parents=True, exist_ok=True)
        remove_all_leftovers(folder)
        for path in sorted(folder.glob(f"*{_SUFFIX}")):
            if resume:
                self._check(path)
            else:
                path.unlink()

    def load(
        self, stage: str, facts: Mapping[str, Any], generator: Generator | None = None
    ) -> dict[str, Array] | None:
        """Arrays of a finished stage, None if it is not finished; `generator` goes on after it.

        Raises:
            OptionError: it was run with other facts than these.
        """
        path = self.folder / f"{stage}{_SUFFIX}"
        if not path.exists():
            return None
        file, maps = _opened(path), MappedFiles()
        kept, asked = _facts(file, "facts"), flattened(facts)
        if kept != asked:
            raise _refusal(path, kept, asked)
        tensors = {name: maps.raw(entry).copy() for name, entry in file.items()}
        maps.close()
        state = tensors.pop(_GENERATOR, None)
        if generator is not None:
            if state is None:
                raise _damage(path)
            generator.state = state
        return tensors

    def save(
        self,
        stage: str,
        facts: Mapping[str, Any],
        tensors: Mapping[str, Array],
        generator: Generator | None = None,
    ) -> None:
        """Keep a finished stage; the file appears whole or not at all."""
        states = {} if generator is None else {_GENERATOR: generator.state}
        write_safetensors(
            self.folder / f"{stage}{_SUFFIX}",
            {**{n: np.ascontiguousarray(t) for n, t in tensors.items()}, **states},
            {"request": json.dumps(self._key), "facts": json.dumps(flattened(facts))},
        )

    def _check(self, path: Path) -> None:
        kept = _facts(_opened(path), "request")
        if kept != self._key:
            raise _refusal(path, kept, self._key)


def kept_stages(folder: Path) -> list[str]:
    """Names of the finished stages in a folder, which need not exist."""
    return sorted(p.name.removesuffix(_SUFFIX) for p in folder.glob(f"*{_SUFFIX}"))


def remove_stages(folder: Path) -> None:
    """Remove the finished stages, and the folder if nothing else is in it."""
    for path in folder.glob(f"*{_SUFFIX}"):
        path.unlink()
    remove_all_leftovers(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _key_of(record: Record) -> dict[str, Any]:
    """As `request_key`, with what is in the files that the request names: `file /a/b.png`, ..."""
    key = request_key(record)
    for path in sorted(set(named_files(record.request))):
        if path.is_file():
            facts = path.stat()
            key[f"file {path}"] = f"{facts.st_size} bytes of {facts.st_mtime_ns}"
        elif frames := [frame.stat() for frame in path.glob("*.exr")]:
            size, newest = sum(f.st_size for f in frames), max(f.st_mtime_ns for f in frames)
            key[f"folder {path}"] = f"{len(frames)} frames, {size} bytes, the last of {newest}"
    return key


def _opened(path: Path) -> SafetensorsFile:
    try:
        return SafetensorsFile(path)
    except CheckpointError as error:
        raise _damage(path) from error


def _facts(file: SafetensorsFile, name: str) -> dict[str, Any]:
    try:
        facts = parse_json(file.metadata[name])
    except (KeyError, ValueError) as error:
        raise _damage(file.path) from error
    return facts if isinstance(facts, dict) else {}


def _damage(path: Path) -> OptionError:
    return OptionError(
        Problem(
            f"the kept stage {path} is damaged, or ltx2rt did not write it: remove it to run this "
            "stage again, or leave ",
            Field("resume"),
            " out to begin anew.",
        )
    )


def _refusal(path: Path, kept: Mapping[str, Any], asked: Mapping[str, Any]) -> OptionError:
    advice = Problem(
        "Repeat that one, choose another folder (",
        Field("work_dir"),
        "), or leave ",
        Field("resume"),
        " out.",
    )
    return OptionError(f"{path} was kept by another request", changes(kept, asked), advice)
