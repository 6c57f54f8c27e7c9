"""What the stages of earlier clips took, kept per bundle: a clip's rest is estimated by them."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx2rt.env import cache_dir
from ltx2rt.errors import OptionError
from ltx2rt.partial import Partial
from ltx2rt.plain_data import parse_json, read_plain, to_plain
from ltx2rt.user_files import read_limited

#: clips of a bundle that are remembered, one of each kind and shape, the latest
MAX_CLIPS = 64
MAX_BYTES = 1_000_000

#: what does not grow with the clip
SIZELESS = ("prompt",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTimes:
    """One clip.

    Attributes:
        kind: what else decides how long it takes: pipeline, device, threads, residency, and whether
            its pipeline had made a clip before.
        shape: frames, height and width of the canvas.
        seconds: stage -> what it took.
    """

    kind: str
    shape: tuple[int, int, int]
    seconds: Mapping[str, float]


def times_file(bundle_id: str) -> Path | None:
    """Where the clips of a bundle are remembered; None where there is no cache."""
    try:
        return cache_dir() / "times" / f"{bundle_id}.json"
    except OptionError:
        return None


def expected_seconds(path: Path, kind: str, shape: Sequence[int]) -> dict[str, float]:
    """What the stages of a clip are likely to take, in their order; nothing if no clip of that kind
    is known. Of another shape it is the nearest one's, in proportion to its cells.
    """
    alike = [clip for clip in read_times(path) if clip.kind == kind]
    if not alike:
        return {}
    wanted = math.prod(shape)

    def distance(clip: ClipTimes) -> float:
        return abs(math.log(math.prod(clip.shape) / wanted))

    nearest = min(alike, key=distance)
    share = wanted / math.prod(nearest.shape)
    return {s: t if s in SIZELESS else t * share for s, t in nearest.seconds.items()}


def remember(path: Path, clip: ClipTimes) -> None:
    """Keep what a clip took; a folder that cannot be written to is no reason to stop."""
    others = [c for c in read_times(path) if (c.kind, c.shape) != (clip.kind, clip.shape)]
    kept: list[Any] = [to_plain(c) for c in [*others[1 - MAX_CLIPS :], clip]]
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with Partial(path) as part:
            part.file.write(json.dumps(kept).encode())


def read_times(path: Path) -> list[ClipTimes]:
    """The clips that are remembered; none where there is no file, or one that is damaged."""
    try:
        data = parse_json(read_limited(path, MAX_BYTES).decode())
    except (OSError, ValueError):
        return []
    read = [read_plain(ClipTimes, entry)[0] for entry in data] if isinstance(data, list) else []
    return [c for c in read if c and min(c.shape) > 0 and min(c.seconds.values(), default=0) >= 0]
