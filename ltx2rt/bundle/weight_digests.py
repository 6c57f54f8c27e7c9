"""Digests of whole weight files: what a changed byte under an unchanged header is found by."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ltx2rt.bundle.engine_file import file_sha256
from ltx2rt.bundle.manifest import Source
from ltx2rt.errors import BundleError
from ltx2rt.plain_data import parse_json, write_document
from ltx2rt.user_files import read_limited

#: lies in the bundle; the first check writes it
FILE_NAME = "weights.json"
_MAX_BYTES = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightDigest:
    """One weight file.

    Attributes:
        path: where it is now.
        sha256: of its content; "" if it cannot be read.
        state: `same`, `noted` (it was not known before), `changed` or `unreadable`.
    """

    path: Path
    sha256: str
    state: str

    @property
    def passed(self) -> bool:
        return self.state in ("same", "noted")


def digest_weights(
    folder: Path, files: Mapping[str, Path], on_file: Callable[[int, int], None]
) -> Iterator[WeightDigest]:
    """Read every weight file of a bundle and compare it with what was noted before; what was not is
    noted now.

    Args:
        folder: the bundle.
        files: what the manifest calls each file -> where it is.
        on_file: called with (files read, files in all).

    Raises:
        BundleError: what was noted cannot be read.
        OSError: it cannot be noted.
    """
    noted = _noted(folder)
    found = dict(noted)
    for number, (name, path) in enumerate(files.items()):
        on_file(number, len(files))
        try:
            digest = file_sha256(path)
        except (OSError, ValueError):
            yield WeightDigest(path=path, sha256="", state="unreadable")
            continue
        known = noted.get(name)
        state = "noted" if known is None else "same" if known == digest else "changed"
        found.setdefault(name, digest)
        yield WeightDigest(path=path, sha256=digest, state=state)
    on_file(len(files), len(files))
    if found != noted:
        write_document(found, folder / FILE_NAME)


def _noted(folder: Path) -> dict[str, str]:
    path = folder / FILE_NAME
    if not path.exists():
        return {}
    try:
        data = parse_json(read_limited(path, _MAX_BYTES).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path} cannot be read: {error}. Remove it to note digests anew."
        ) from error
    if not isinstance(data, dict) or not all(isinstance(v, str) for v in data.values()):
        raise BundleError(f"{path} holds no digests. Remove it to note them anew.")
    return data


def warn_of_later_changes(source: Source, place: Path) -> None:
    """Warn of a weight file that lies where it was and was written since the build. Its header, and
    so every size, is as it was; whether its numbers are takes reading it.
    """
    if source.modified_ns and place == Path(source.path):
        if place.stat().st_mtime_ns != source.modified_ns:
            warnings.warn(
                f"{place} was written to since the build, its header unchanged; "
                "`ltx2rt verify BUNDLE --weights` tells whether its numbers changed.",
                stacklevel=3,
            )
