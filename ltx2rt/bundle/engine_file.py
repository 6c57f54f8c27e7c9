"""Engine files and the JSON beside each: what it was built from and for, and what is inside it.

TensorRT-RTX engines hold the source of their kernels as text, so fused attentions can be counted
without a GPU; in other versions the names may differ, so counts are given for known ones only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import mmap
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx2rt.bundle.buckets import Bucket
from ltx2rt.bundle.manifest import Tensor
from ltx2rt.plain_data import read_document, write_document
from ltx2rt.user_files import open_regular

SIDECAR_SCHEMA = 1

#: (backend, major.minor) whose text is known
KNOWN_KERNELS = {("tensorrt-rtx", "1.7")}

_KERNEL = re.compile(rb'extern\s+"C"\s+__global__[^;{(]{0,200}?(\w+)\s*\(')


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """One engine, as the JSON beside it says.

    Attributes:
        component, precision, targets: what it is, and for which GPUs.
        backend, backend_version: what built it and alone can load it.
        weights: `input` (bound by name) or `constant` (inside).
        inputs, outputs: its tensors, weights left out; shapes with symbols.
        weight_inputs: weights that are bound, by name, in the engine's dtypes and layouts.
        buckets: one per optimization profile, in order.
        attentions: attentions of the graph, for one profile.
        graph_sha256: of the graph, weights as the engine takes them.
        cache_key: names everything that the engine depends on.
        options: builder options that were set.
        version_compatible: other versions of the backend can load it.
        plugins: Python modules that register its plugins -> SHA-256 of their sources.
        activation_bytes: of each bucket at its largest, inputs and outputs too: an estimate, which
            the library puts right on a GPU. Empty in files of older builds.
    """

    schema: int
    component: str
    backend: str
    backend_version: str
    targets: tuple[str, ...]
    precision: str
    weights: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    weight_inputs: tuple[Tensor, ...]
    buckets: tuple[Bucket, ...]
    attentions: int
    graph_sha256: str
    cache_key: str
    options: dict[str, Any]
    version_compatible: bool
    build_s: float
    peak_memory_bytes: int
    engine_bytes: int
    engine_sha256: str
    plugins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    activation_bytes: tuple[int, ...] = ()


def sidecar_of(engine: Path) -> Path:
    """Where the JSON of an engine lies."""
    return engine.with_name(engine.name + ".json")


def write_info(info: EngineInfo, engine: Path) -> None:
    """Write the JSON beside an engine, atomically."""
    write_document(dataclasses.asdict(info), sidecar_of(engine))


def read_info(engine: Path) -> EngineInfo:
    """Read and check the JSON beside an engine.

    Raises:
        BundleError: there is none, or it is not valid (all problems listed).
    """
    path = sidecar_of(engine)
    return read_document(
        EngineInfo,
        path,
        SIDECAR_SCHEMA,
        where=path.name,
        missing=f"{engine} has no {path.name} beside it: copy both, or build the engine again.",
        again="Build the engine again.",
    )


def file_sha256(path: Path) -> str:
    """Digest of a file's content; it is not read into memory as a whole."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReport:
    """Kernels of an engine over all profiles, or why they cannot be read.

    `fused_attentions` should be the graph's attentions times profiles; `unfused_softmax` are
    kernels of attentions that write their logits out, `stray_transposes` kernels that only move
    data.
    """

    known: bool
    kernels: int = 0
    fused_attentions: int = 0
    unfused_softmax: int = 0
    stray_transposes: int = 0
    names: Mapping[str, int] = dataclasses.field(default_factory=dict)


def is_known(backend: str, version: str) -> bool:
    """Whether the text in engines of this version is known."""
    return (backend, ".".join(version.split(".")[:2])) in KNOWN_KERNELS


def kernels_in(engine: Path, backend: str, version: str) -> KernelReport:
    """Count the kernels in an engine file; it is mapped, not read into memory."""
    if not is_known(backend, version):
        return KernelReport(known=False)
    with engine.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        names = [m.group(1).decode() for m in _KERNEL.finditer(data)]
    counts = Counter(_short(n) for n in names)
    return KernelReport(
        known=True,
        kernels=len(names),
        fused_attentions=sum(n.startswith("_gemm_mha_v2") for n in names),
        unfused_softmax=sum("MaxrSubExpSum" in n for n in names),
        stray_transposes=sum(_short(n) == "__myl_Tran" for n in names),
        names=dict(counts.most_common()),
    )


def _short(name: str) -> str:
    """A kernel's name without its hash: `__myl_Tran_0x1a2b..._com` -> `__myl_Tran`."""
    return re.sub(r"_(0x)?[0-9a-f]{16,}.*$", "", name)
