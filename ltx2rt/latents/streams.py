"""Something of video and something of audio, side by side through every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: in the order in which upstream draws noise and takes steps
MODALITIES = ("video", "audio")


@dataclass(frozen=True, eq=False)
class Streams(Generic[T]):
    """What there is of each modality; None for one that is absent. Iterates as video, audio."""

    video: T | None
    audio: T | None

    def __iter__(self) -> Iterator[T | None]:
        return iter((self.video, self.audio))

    def items(self) -> Iterator[tuple[str, T]]:
        """`("video", ...)`, `("audio", ...)`, of what there is."""
        return ((m, v) for m, v in zip(MODALITIES, self, strict=True) if v is not None)

    def map(self, change: Callable[..., R | None], *others: Streams[Any]) -> Streams[R]:
        """`change` of every modality that this and all others have, video first.

        Args:
            others: their values are further arguments of `change`.
        """
        results = []
        for values in zip(self, *others, strict=True):
            absent = any(value is None for value in values)
            results.append(None if absent else change(*values))
        return Streams(*results)

    def named(self, change: Callable[..., R | None], *others: Streams[Any]) -> Streams[R]:
        """As `map`, with the modality's name as first argument."""
        return Streams(*MODALITIES).map(change, self, *others)
