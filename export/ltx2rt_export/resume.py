"""Builds that were stopped go on: the weight files that they had finished are kept.

Weights are what takes a build minutes and tens of GB; graphs and engines come from a cache. Files
appear under their names only when they are complete, so those of the very same build can be taken
over as they are.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ltx2rt.bundle.manifest import BuildInputs
from ltx2rt.lora.files import open_lora
from ltx2rt_export.build_config import BuildConfig
from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.engines.cache import cache_key
from ltx2rt_export.sources import sources_sha256
from ltx2rt_export.weight_set import WeightFile

#: follows the name of a work folder in that of a bundle which it replaces
OLD = ".old"
#: holds the key of the build that a work folder belongs to
KEY_FILE = "build.key"

#: options that change engines but no weight file
ENGINE_OPTIONS = frozenset({
    "backend", "target", "shapes", "max_batch", "weights", "lora_inputs", "optimization_level",
    "workspace_mib", "aux_streams", "timing_cache", "hardware_compatible", "version_compatible",
    "plugin_modules", "custom_ops", "cache_dir", "jobs", "force",
})  # fmt: skip


def weights_key(files: ModelFiles, inputs: BuildInputs, config: BuildConfig) -> str:
    """A digest of everything that decides what is in the weight files of a bundle."""
    read = [file for weights in files.files.values() for file in weights.files]
    read += files.gemma.files if files.gemma else ()
    options = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if f.name not in ENGINE_OPTIONS
    }
    return cache_key(
        {
            "sources": sources_sha256(),
            "numpy": np.__version__,
            "files": [_identity(file) for file in read],
            "loras": [[_identity(open_lora(x.path)), x.strength] for x in inputs.loras],
            "options": options,
        }
    )


def _identity(file: WeightFile) -> list[Any]:
    """What tells a file from every other, and from itself before any change, without reading it:
    a copy that keeps its times has another inode, and replacing a file sets its change time.
    """
    path = file.path.absolute()
    stat = path.stat()
    times = [stat.st_mtime_ns, stat.st_ctime_ns]
    return [str(path), file.header_sha256, stat.st_size, stat.st_dev, stat.st_ino, *times]


def open_work(parent: Path, name: str, key: str) -> Path:
    """A folder to build the bundle `name` in: that of a build of this key which was stopped, with
    the weight files that it had finished, or a new one. Other builds' leftovers are removed: the
    caller has the lock of that name, so none runs.
    """
    pattern = re.compile(rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}\.part")
    work = None
    for path in sorted(parent.iterdir()):
        if not pattern.fullmatch(path.name):
            continue
        if work is None and _key_of(path) == key and prune(path):
            work = path
        else:
            shutil.rmtree(path, ignore_errors=True)
    if work is None:
        work = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".part", dir=parent))
        (work / KEY_FILE).write_text(key, encoding="ascii")
    return work


def restore_old(output: Path) -> bool:
    """Where systems cannot exchange folders, a build that was killed while it replaced a bundle
    leaves the old one under another name: give it back its own, or remove it if the new one is
    there. The caller has the lock of that name.

    Returns:
        whether it was given back.
    """
    target = Path(os.path.realpath(output))
    pattern = re.compile(rf"\.{re.escape(output.name)}\.[a-z0-9_]{{8}}\.part{re.escape(OLD)}")
    restored = False
    for path in sorted(p for p in target.parent.iterdir() if pattern.fullmatch(p.name)):
        if target.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.replace(target)
            restored = True
    return restored


def prune(work: Path) -> int:
    """Remove all but the finished weight files (and the key), and say how many there are."""
    kept = set(_finished(work))
    for folder, folders, names in os.walk(work, topdown=False):
        here = Path(folder)
        for path in (here / n for n in names):
            if path not in kept and path != work / KEY_FILE:
                path.unlink()
        for path in (here / n for n in folders):
            if not any(path.iterdir()):
                path.rmdir()
    return len(kept)


def _finished(work: Path) -> Iterable[Path]:
    """Names that start with a dot are of files that are being written."""
    weights = (work / "weights").rglob("*.safetensors")
    return (path for path in weights if not path.name.startswith("."))


def _key_of(path: Path) -> str | None:
    if path.is_symlink() or not os.access(path, os.W_OK | os.X_OK):
        return None
    try:
        return (path / KEY_FILE).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
