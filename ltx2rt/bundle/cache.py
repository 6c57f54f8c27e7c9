"""The cache folder: what is in it, and how it is emptied."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from ltx2rt.bundle.lock import build_lock
from ltx2rt.errors import OptionError

#: work folders of engine builds
WORK = ".build-*"

#: kind of file -> its folder, and patterns of names
KINDS = {
    "engines": ("engines", ("*.engine", "*.engine.json")),
    "graphs": ("engines", ("*.onnx", "*.onnx.json")),
    "kernels": ("kernels", ("*.bin",)),
    "prompts": ("enhanced", ("*.json",)),
    "colours": ("colours", ("*.json",)),
    "times": ("times", ("*.json",)),
    "inputs": ("inputs", ("[0-9a-f]*",)),
}


def cached_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each kind: built engines and exported graphs, kernels that were compiled on the
    first run, rewritten prompts, colours of latents (for previews), what earlier clips took (to
    estimate the rest of one), images and sound that a program gave from memory.
    """
    return {
        kind: sorted(p for pattern in patterns for p in (folder / place).glob(pattern))
        for kind, (place, patterns) in KINDS.items()
    }


def clear_cache(folder: Path, older_than_s: float = 0.0) -> dict[str, list[Path]]:
    """Remove files that nobody wrote or, where the file system keeps that, read for so long, and
    what killed builds left; files of other names stay.

    Returns:
        the removed files of each kind.

    Raises:
        OptionError: a build is using the cache.
    """
    if remove_leftovers(folder / "engines"):
        raise OptionError(f"a build is using the cache {folder}; wait until it is done.")
    now = time.time()
    removed: dict[str, list[Path]] = {}
    for kind, paths in cached_files(folder).items():
        stats = {path: path.stat() for path in paths}
        removed[kind] = [
            p for p, s in stats.items() if now - max(s.st_mtime, s.st_atime) >= older_than_s
        ]
        for path in removed[kind]:
            path.unlink(missing_ok=True)
    return removed


def remove_leftovers(engines: Path) -> int:
    """Remove the work folders of builds that were killed, and say how many are in use."""
    count = 0
    for path in engines.glob(WORK):
        count += 1
        # who works in it holds its lock
        with contextlib.suppress(OptionError), build_lock(path):
            shutil.rmtree(path, ignore_errors=True)
            count -= 1
    return count
