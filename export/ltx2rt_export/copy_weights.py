"""`--copy-weights`: copy the needed tensors into the bundle, under their official names, file by
file.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from ltx2rt.manifest import BuildInputs, ComponentEntry, Source, WeightRef
from ltx2rt.progress import Job
from ltx2rt.safetensors import MappedFiles, SafetensorsFile, TensorEntry
from ltx2rt.safetensors_writer import write_safetensors
from ltx2rt_export.checkpoint import ModelFiles

#: bytes copied at a time: a tensor is never held in memory as a whole
CHUNK_BYTES = 16 * 2**20

#: small files of a Gemma folder kept beside its weights, so that the bundle can be verified alone
GEMMA_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
)


def copy_weights(
    work: Path,
    entries: Mapping[str, ComponentEntry],
    sources: list[Source],
    files: ModelFiles,
    inputs: BuildInputs,
    job: Job,
) -> tuple[dict[str, ComponentEntry], list[Source], BuildInputs]:
    """Copy what `entries` reference to `work/weights/` and return entries, sources and inputs that
    point there.

    Files keep their metadata and names, so a copied bundle is itself a valid set of checkpoint
    files.
    """
    used = _used_offsets(entries, len(sources))
    copied: list[Source] = []
    moved: list[dict[int, int]] = []
    places: dict[str, str] = {}
    job.report("copy weights", 0, len(sources))
    for number, source in enumerate(sources):
        if not Path(source.path).is_absolute():  # already in the bundle: an overlay of this build
            copied.append(source)
            moved.append({offset: offset for offset in used[number]})
            continue
        file = SafetensorsFile(source.path)
        wanted = [e for e in file.values() if e.offset in used[number]]
        folder = "weights/gemma" if _is_gemma(files, file.path) else "weights"
        (work / folder).mkdir(parents=True, exist_ok=True)
        place = f"{folder}/{file.path.name}"
        write_safetensors(
            work / place,
            {e.name: (e.dtype, e.shape, _chunks(e)) for e in wanted},
            file.metadata,
        )
        new = SafetensorsFile(work / place)
        moved.append({e.offset: new[e.name].offset for e in wanted})
        copied.append(Source(path=place, bytes=new.file_bytes, header_sha256=new.header_sha256))
        places[str(file.path)] = place
        job.report("copy weights", number + 1, len(sources), file.path.name)
    relocated = {
        name: dataclasses.replace(
            entry, layers=tuple(_move(layer, moved) for layer in entry.layers)
        )
        for name, entry in entries.items()
    }
    return relocated, copied, _copy_inputs(work, files, inputs, places)


def _used_offsets(entries: Mapping[str, ComponentEntry], count: int) -> list[set[int]]:
    used: list[set[int]] = [set() for _ in range(count)]
    for entry in entries.values():
        for layer in entry.layers:
            for ref in layer.values():
                used[ref.source].add(ref.offset)
    return used


def _move(layer: Mapping[str, WeightRef], moved: list[dict[int, int]]) -> dict[str, WeightRef]:
    return {
        name: dataclasses.replace(ref, offset=moved[ref.source][ref.offset])
        for name, ref in layer.items()
    }


def _chunks(entry: TensorEntry) -> Iterator[bytes]:
    raw = MappedFiles().raw(entry).reshape(-1)
    step = max(1, CHUNK_BYTES // max(1, raw.itemsize))
    for begin in range(0, raw.size, step):
        yield raw[begin : begin + step].tobytes()


def _is_gemma(files: ModelFiles, path: Path) -> bool:
    if files.gemma is None:
        return False
    gemma = files.gemma.path
    return gemma.is_dir() and path.absolute().is_relative_to(gemma.absolute())


def _copy_inputs(
    work: Path, files: ModelFiles, inputs: BuildInputs, places: Mapping[str, str]
) -> BuildInputs:
    changed: dict[str, str] = {}
    for field in dataclasses.fields(BuildInputs):
        value = getattr(inputs, field.name)
        if isinstance(value, str) and str(Path(value).absolute()) in places:
            changed[field.name] = places[str(Path(value).absolute())]
    if files.gemma is not None and files.gemma.path.is_dir():
        for name in GEMMA_FILES:
            shutil.copyfile(files.gemma.path / name, work / "weights/gemma" / name)
        changed["gemma"] = "weights/gemma"
    return dataclasses.replace(inputs, **changed)
