"""`--copy-weights`: copy the needed tensors into the bundle, under their official names, file by
file. Tensors that a LoRA changed are copied as changed.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ltx2rt.bundle.manifest import BuildInputs, ComponentEntry, Place, Source, WeightRef
from ltx2rt.lora.files import Lora
from ltx2rt.progress import Job
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry
from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.storage_format import is_companion_of

#: bytes copied at a time: a tensor is never held in memory as a whole
CHUNK_BYTES = 16 * 2**20

#: small files of a Gemma folder kept beside its weights, so that the bundle can be verified alone
GEMMA_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
)

#: where a tensor lies: file, offset and length (an empty tensor shares its offset with another)
Location = tuple[Path, int, int]
P = TypeVar("P", bound=Place)


def copy_weights(
    work: Path,
    entries: Mapping[str, ComponentEntry],
    sources: Sequence[Source],
    files: ModelFiles,
    inputs: BuildInputs,
    job: Job,
) -> tuple[dict[str, ComponentEntry], list[Source], BuildInputs]:
    """Copy what `entries` reference to `work/weights/` and return entries, sources and inputs that
    point there.

    Files keep their metadata and names, and those of other layouts get official ones, so a copied
    bundle is itself a valid set of checkpoint files. With LoRAs it is the fused model: they leave
    `inputs` and are named in the metadata.
    """
    used = _used_places(work, entries, sources)
    overlays = [work / s.path for s in sources if not Path(s.path).is_absolute()]
    fused = {name: e for path in overlays for name, e in SafetensorsFile(path).items()}
    assets = files.gemma.assets.values() if files.gemma else ()
    used |= {_place(e) for e in assets if isinstance(e, TensorEntry)}
    copied: list[Source] = []
    moved: dict[Location, tuple[int, int]] = {}
    places: dict[Path, str] = {}
    originals = _originals(sources, files, fused)
    official = {_place(e): e.name for w in files.files.values() for e in w.values()}
    metadata = {f.path.absolute(): w.metadata for w in files.files.values() for f in w.files}
    job.report("copy weights", 0, len(originals))
    for number, path in enumerate(originals):
        file = SafetensorsFile(path)
        entries_here = [
            dataclasses.replace(e, name=official.get(_place(e), e.name)) for e in file.values()
        ]
        copied_names = {e.name for e in entries_here if _place(e) in used}
        wanted = [
            fused.get(e.name, e)
            for e in entries_here
            if e.name in fused
            or e.name in copied_names
            or is_companion_of(e.name, copied_names - fused.keys())
        ]
        place = _new_name(files, path, set(places.values()) | {s.path for s in sources}, number)
        (work / place).parent.mkdir(parents=True, exist_ok=True)
        loras = _lora_metadata(inputs.loras) if any(e.name in fused for e in wanted) else {}
        if not (work / place).exists():  # a build that was stopped had copied it: see `resume`
            write_safetensors(
                work / place,
                {e.name: (e.dtype, e.shape, _chunks(e)) for e in wanted},
                {**metadata.get(path, file.metadata), **loras},
            )
        new = SafetensorsFile(work / place)
        moved.update({_place(e): (number, new[e.name].offset) for e in wanted})
        copied.append(Source(path=place, bytes=new.file_bytes, header_sha256=new.header_sha256))
        places[path] = place
        job.report("copy weights", number + 1, len(originals), path.name)
    for overlay in overlays:
        overlay.unlink()
    relocated = {
        name: dataclasses.replace(
            entry, layers=tuple(_move(layer, work, sources, moved) for layer in entry.layers)
        )
        for name, entry in entries.items()
    }
    return relocated, copied, _copy_inputs(work, files, inputs, places)


def _originals(
    sources: Sequence[Source], files: ModelFiles, fused: Mapping[str, TensorEntry]
) -> list[Path]:
    """The user's files to copy: those referenced, and those whose tensors a LoRA replaced."""
    paths = [Path(s.path) for s in sources if Path(s.path).is_absolute()]
    replaced = [
        e.path.absolute()
        for weights in files.files.values()
        for name in sorted(fused.keys() & weights.keys())
        for e in (weights[name],)
    ]
    return list(dict.fromkeys([*paths, *replaced]))


def _place(entry: TensorEntry) -> Location:
    return entry.path.absolute(), entry.offset, entry.length


def _ref_place(work: Path, sources: Sequence[Source], ref: Place) -> Location:
    return work / sources[ref.source].path, ref.offset, ref.length


def _used_places(
    work: Path, entries: Mapping[str, ComponentEntry], sources: Sequence[Source]
) -> set[Location]:
    return {
        _ref_place(work, sources, place)
        for entry in entries.values()
        for layer in entry.layers
        for ref in layer.values()
        for place in (ref, *(ref.encoding.parts.values() if ref.encoding else ()))
    }


def _move(
    layer: Mapping[str, WeightRef],
    work: Path,
    sources: Sequence[Source],
    moved: Mapping[Location, tuple[int, int]],
) -> dict[str, WeightRef]:
    def move(place: P) -> P:
        source, offset = moved[_ref_place(work, sources, place)]
        return dataclasses.replace(place, source=source, offset=offset)

    result = {}
    for name, ref in layer.items():
        result[name] = move(ref)
        if ref.encoding is not None:
            parts = {part: move(place) for part, place in ref.encoding.parts.items()}
            encoding = dataclasses.replace(ref.encoding, parts=parts)
            result[name] = dataclasses.replace(result[name], encoding=encoding)
    return result


def _chunks(entry: TensorEntry) -> Iterator[bytes]:
    raw = MappedFiles().raw(entry).reshape(-1)
    step = max(1, CHUNK_BYTES // max(1, raw.itemsize))
    for begin in range(0, raw.size, step):
        yield raw[begin : begin + step].tobytes()


def _new_name(files: ModelFiles, path: Path, taken: set[str], number: int) -> str:
    """Where a file goes; files of one name from several folders are told apart by a number."""
    folder = "weights/gemma" if _is_gemma(files, path) else "weights"
    name = f"{folder}/{path.name}"
    return f"{folder}/{number}-{path.name}" if name in taken else name


def _is_gemma(files: ModelFiles, path: Path) -> bool:
    if files.gemma is None:
        return False
    gemma = files.gemma.path
    return gemma.is_dir() and path.absolute().is_relative_to(gemma.absolute())


def _lora_metadata(loras: Sequence[Lora]) -> dict[str, str]:
    return {"loras": "; ".join(f"{Path(x.path).name}:{x.strength:g}" for x in loras)}


def _copy_inputs(
    work: Path, files: ModelFiles, inputs: BuildInputs, places: Mapping[Path, str]
) -> BuildInputs:
    changed: dict[str, str] = {}
    for field in dataclasses.fields(BuildInputs):
        value = getattr(inputs, field.name)
        if isinstance(value, str) and Path(value).absolute() in places:
            changed[field.name] = places[Path(value).absolute()]
    copied_gemma = any(place.startswith("weights/gemma/") for place in places.values())
    if files.gemma is not None and copied_gemma:
        for name in GEMMA_FILES:
            if isinstance(asset := files.gemma.assets.get(name), Path):
                shutil.copyfile(asset, work / "weights/gemma" / name)
        changed["gemma"] = "weights/gemma"
    parts = tuple(places.get(Path(path).absolute(), path) for path in inputs.audio_parts)
    return dataclasses.replace(inputs, loras=(), audio_parts=parts, **changed)
