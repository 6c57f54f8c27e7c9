"""Whether the files of a bundle are those that its manifest names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ltx2rt.backends.tensorrt_api import APIS, installed_version
from ltx2rt.bundle.engine_file import file_sha256, read_info, sidecar_of
from ltx2rt.bundle.manifest import ComponentEntry, Manifest
from ltx2rt.errors import BundleError

#: larger files, which are engines with their weights inside, are checked by their size alone
HASHED_BYTES = 1 << 26


def engine_problems(
    folder: Path, manifest: Manifest, entries: Mapping[str, ComponentEntry]
) -> list[str]:
    """Engines that are missing, changed, without their JSON, or of another version than is
    installed. GPUs are not looked at.

    Args:
        entries: those of the manifest, and how they run without masks.
    """
    problems = []
    for name, entry in entries.items():
        wanted = len(entry.served) if entry.layered else 1
        if manifest.backend != "onnxruntime" and not entry.engines:
            problems.append(f"{name} has no engine for backend {manifest.backend!r}")
        elif entry.engines and len(entry.engines) != wanted:
            problems.append(f"{name} has {len(entry.engines)} engines, expected {wanted}")
        for engine in entry.engines:
            what = f"the engine of {name}"
            found = check_file(folder, engine.file, engine.sha256, what, engine.bytes)
            problems += found or _sidecar_problems(folder / engine.file, engine.sha256)
            if engine.backend not in APIS or engine.backend != manifest.backend:
                problems.append(
                    f"the engine of {name} is for backend {engine.backend!r}, the bundle for "
                    f"{manifest.backend!r}"
                )
                continue
            version = installed_version(engine.backend)
            if version not in (None, engine.backend_version) and not engine.version_compatible:
                problems.append(
                    f"the engine of {name} was built by {APIS[engine.backend].label} "
                    f"{engine.backend_version} and {version} is installed"
                )
    return problems


def _sidecar_problems(engine: Path, sha256: str) -> list[str]:
    try:
        info = read_info(engine)
    except BundleError as error:
        return [*error.problems]
    return [] if info.engine_sha256 == sha256 else [f"{sidecar_of(engine)} is of another engine"]


def check_file(folder: Path, name: str, sha256: str, what: str, size: int = 0) -> list[str]:
    """Problems of a file of the bundle; of `size` bytes if that is more than `HASHED_BYTES`."""
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return [f"{what}: {name!r:.80} is not a file of the bundle"]
    try:
        if path.exists() and not path.is_file():
            return [f"{what}: {path} is not a file"]
        if size > HASHED_BYTES:
            fits = path.stat().st_size == size
            return [] if fits else [f"{what}: {path} does not have the size in the manifest"]
        digest = file_sha256(path)
    except OSError as error:
        return [f"{what}: {path!s:.300} cannot be read ({error.strerror})"]
    except ValueError as error:
        return [f"{what}: {str(path)!r:.300} cannot be read ({error})"]
    return [] if digest == sha256 else [f"{what}: {path} does not match its hash in the manifest"]
