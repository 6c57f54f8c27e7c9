"""Whether a media file ends where its own sizes say: what was cut off, or never finished."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

#: boxes of an mp4 or mov file that hold its sound, picture and index
_CONTENT = frozenset({b"mdat", b"moov", b"moof", b"mfra"})
#: how such a file may begin
_FIRST = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"})
#: sizes of RIFF files that were written to a pipe
_UNKNOWN = (0, 0xFFFFFFFF)


def is_cut_off(path: Path) -> bool:
    """Whether an mp4, mov or RIFF file is shorter than it says; False for other kinds."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if start[:4] == b"RIFF":
            size = int.from_bytes(start[4:8], "little")
            return size not in _UNKNOWN and size + 8 > end
        if start[4:8] not in _FIRST:
            return False
        return any(kind in _CONTENT and box_end > end for kind, box_end in _boxes(file, end))


def is_finished(path: Path) -> bool:
    """Whether an mp4 or mov file is whole; one in fragments has an index, which is written last."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        boxes = list(_boxes(file, end))
    kinds = [kind for kind, _ in boxes]
    if b"moov" not in kinds or boxes[-1][1] != end:
        return False
    return b"moof" not in kinds or kinds[-1] == b"mfra"


def _boxes(file: BinaryIO, end: int) -> Iterator[tuple[bytes, int]]:
    """Kind and end of each box of the file's outermost level."""
    place = 0
    while place + 8 <= end:
        file.seek(place)
        header = file.read(16)
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        elif size == 0:  # up to the end of the file
            size = end - place
        if size < 8:
            return  # it is no box
        place += size
        yield kind, place
