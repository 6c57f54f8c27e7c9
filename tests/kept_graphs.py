"""Graphs of the tests' own models, kept here so that a fresh checkout traces none of them.

A graph's name is a digest of all that decides it (`ltx2rt_export.engines.graphs`): one of another
exporter is never found, and the tests export again. To keep new ones, run all tests with an empty
folder, then pack it:

    LTX2RT_CACHE=/tmp/graphs make test
    python -m tests.kept_graphs /tmp/graphs
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

ARCHIVE = Path(__file__).with_name("kept_graphs.tar.xz")


def folder_of(cache: Path) -> Path:
    """Where graphs lie below a cache folder."""
    return cache / "engines"


def graph_names(cache: Path) -> set[str]:
    """The graphs of a cache folder."""
    return {path.name for path in folder_of(cache).glob("*.onnx")}


def unpack(cache: Path, archive: Path = ARCHIVE) -> None:
    """Put the kept graphs that a cache folder lacks into it. Safe beside other test runs."""
    folder = folder_of(cache)
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as kept:
        for member in kept:
            target = folder / Path(member.name).name
            file = kept.extractfile(member)
            if file is None or target.exists():
                continue
            part = target.with_name(f"{target.name}.{os.getpid()}.part")
            part.write_bytes(file.read())
            part.replace(target)


def pack(cache: Path, archive: Path = ARCHIVE) -> int:
    """Keep every graph of a cache folder, with what lies beside it; the same graphs give the same
    bytes. Returns how many there are.
    """
    folder, names = folder_of(cache), sorted(graph_names(cache))
    with tarfile.open(archive, "w:xz", preset=9) as kept:
        # graphs behind one another: they resemble each other
        for name in [*(f"{n}.json" for n in names), *sorted(names, key=_size(folder))]:
            data = (folder / name).read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            kept.addfile(member, io.BytesIO(data))
    return len(names)


def _size(folder: Path) -> Callable[[str], tuple[int, str]]:
    return lambda name: ((folder / name).stat().st_size, name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kept_graphs", description=__doc__)
    parser.add_argument("cache", type=Path, help="the folder that LTX2RT_CACHE named")
    cache = parser.parse_args().cache
    if not graph_names(cache):
        sys.exit(f"{cache} holds no graphs: run the tests with LTX2RT_CACHE={cache} first.")
    count = pack(cache)
    print(f"{count} graphs, {ARCHIVE.stat().st_size / 1e6:.2f} MB: {ARCHIVE}")


if __name__ == "__main__":
    main()
