"""What sub-commands share: the export extra, values of flags, JSON output."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO

from ltx2rt.errors import UnsupportedError
from ltx2rt.user_files import read_limited

#: of a file that holds the text of a flag
MAX_TEXT_BYTES = 1_000_000

#: package -> the extra that brings it, where that is not `export`
_EXTRAS = {"onnx": "build", "polygraphy": "debug"}

if TYPE_CHECKING:
    from ltx2rt.lora.files import Lora


def export_module(name: str) -> ModuleType:
    """Import `ltx2rt_export.<name>`.

    Raises:
        UnsupportedError: it needs a package that is not installed; says how to install it.
    """
    try:
        return importlib.import_module(f"ltx2rt_export.{name}")
    except ModuleNotFoundError as error:
        raise missing_package(error) from error


def missing_package(error: ModuleNotFoundError) -> Exception:
    """What to raise for a package that is not there: the error itself where it is one of ours."""
    from ltx2rt.install import install_hint

    package = (error.name or "ltx2rt").partition(".")[0]
    if package.startswith("ltx2rt"):
        return error
    if extra := _EXTRAS.get(package):
        return UnsupportedError(
            f"this command needs the package {package}, which is part of the {extra} extra: "
            f"{install_hint(extra)}"
        )
    return UnsupportedError(
        f"this needs the package {package}, which is part of the export extra: "
        f"{install_hint('export')} (graphs that do not come with ltx2rt are "
        "exported with it, and verify compares with PyTorch)."
    )


def text_or_file(text: str) -> str:
    """`TEXT`, or the text of the UTF-8 file that `@FILE` names, without its last line break; a text
    that begins with `@` is written with two.

    Raises:
        ArgumentTypeError: the file cannot be read.
    """
    if not text.startswith("@") or text.startswith("@@"):
        return text.removeprefix("@")
    path = Path(text[1:])
    try:
        return read_limited(path, MAX_TEXT_BYTES).decode("utf-8").removesuffix("\n")
    except OSError as error:
        found = error.strerror or str(error)
    except UnicodeDecodeError:
        found = "it is not UTF-8 text"
    except ValueError as error:
        found = str(error)
    raise argparse.ArgumentTypeError(f"cannot read '{path}': {found}")


def parse_lora(text: str) -> Lora:
    """`FILE` or `FILE:STRENGTH`."""
    from ltx2rt.lora.files import Lora  # `ltx2rt pipelines` is quick without

    path, strength = split_strength(text)
    return Lora(path=path, strength=strength)


def split_strength(text: str) -> tuple[str, float]:
    """`FILE` or `FILE:STRENGTH` as its parts; a file of the whole name wins."""
    path, colon, strength = text.rpartition(":")
    if not colon or not path or Path(text).exists():
        return text, 1.0
    try:
        return path, float(strength)
    except ValueError:
        return text, 1.0


def print_json(value: Any, stream: TextIO | None = None) -> None:
    """One JSON document, on stdout if nothing else is said."""
    print(json.dumps(value, indent=2, default=str), file=stream or sys.stdout)


def parse_device(text: str) -> int:
    """`1` or `cuda:1`."""
    kind, colon, number = text.rpartition(":")
    if (colon and kind != "cuda") or not number.isascii() or not number.isdecimal():
        raise argparse.ArgumentTypeError(
            f"invalid device: {text!r}; write the number of a GPU, as 0 or cuda:0"
        )
    return int(number)


def parse_devices(text: str) -> list[int]:
    """`0,1` or `cuda:0,cuda:1`."""
    return [parse_device(part) for part in text.split(",")]
