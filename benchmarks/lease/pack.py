"""Prepare what a lent machine lacks: `python -m benchmarks.lease.pack [--arch 90a] [--wheel NAME]`.

Writes compiled kernels, and wheels in pieces that a transfer with a limit of 64 MiB a file takes.
`install` puts the pieces together again and unpacks the wheels into a folder; pip is not needed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.lease.block import pack_graph
from benchmarks.lease.steps import KERNELS

PIECE_BYTES = 60 * 2**20
MANIFEST = "wheels.json"
#: what the steps use that such machines may not have
WHEELS = ("cuda-core", "cuda-bindings", "tensorrt-rtx-cu13", "onnxruntime-gpu", "tokenizers", "av")


def main(arguments: Sequence[str]) -> int:
    """Write the pack."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lease.pack", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "pack")
    parser.add_argument("--arch", default="90a", help="of the kernels; 90a is H100 and H200")
    parser.add_argument("--wheel", action="append", metavar="NAME", help=f"default: {WHEELS}")
    parser.add_argument("--no-wheels", action="store_true", help="kernels alone")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    pack_kernels(options.output / KERNELS, options.arch)
    pack_graph(options.output)
    if not options.no_wheels:
        with tempfile.TemporaryDirectory() as folder:
            download(options.wheel or WHEELS, Path(folder))
            pack_wheels(sorted(Path(folder).glob("*.whl")), options.output)
    return 0


def pack_kernels(folder: Path, arch: str) -> None:
    """Every kernel of ours for one architecture."""
    from ltx2rt_kernels import build, catalog

    wanted = [spec for spec in catalog.kernels() if arch in spec.configs]
    for artifact in build.write_artifacts(folder, wanted, [arch]):
        sys.stdout.write(f"{artifact.name}\n")


def download(names: Sequence[str], folder: Path) -> None:
    """Wheels as pip finds them, without what they depend on."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "-d", str(folder), *names], check=True)


def pack_wheels(wheels: Sequence[Path], folder: Path, piece_bytes: int = PIECE_BYTES) -> None:
    """Split wheels; `wheels.json` says which pieces make up which, and their digest."""
    listed = {}
    for wheel in wheels:
        data, names = wheel.read_bytes(), []
        for number, start in enumerate(range(0, len(data), piece_bytes)):
            names.append(f"{wheel.name}.{number:03d}")
            (folder / names[-1]).write_bytes(data[start : start + piece_bytes])
        listed[wheel.name] = {"pieces": names, "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def install(folder: Path, site: Path) -> Path | None:
    """Unpack the wheels of a pack; None where it has none.

    Raises:
        ValueError: a wheel is not what was packed.
    """
    manifest = folder / MANIFEST
    if not manifest.exists():
        return None
    for name, about in json.loads(manifest.read_text(encoding="utf-8")).items():
        data = b"".join((folder / piece).read_bytes() for piece in about["pieces"])
        if hashlib.sha256(data).hexdigest() != about["sha256"]:
            raise ValueError(f"{name} in {folder} is not what was packed: pack it again")
        site.mkdir(parents=True, exist_ok=True)
        whole = site / name
        whole.write_bytes(data)
        with zipfile.ZipFile(whole) as archive:
            archive.extractall(site)
        whole.unlink()
    return site


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
