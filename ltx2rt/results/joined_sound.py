"""The sound of clips one after the other, in pieces: at one rate, as long as their picture,
cross-faded over what they share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from ltx2rt.engine import F32
from ltx2rt.media.audio import LAYOUTS, is_of_16_bits
from ltx2rt.media.resample import resampled_pieces
from ltx2rt.media.sound import mixed_down, silence

#: what gives the pieces of a sound from its beginning, each time that it is called (`[2, n]`
#: float32; or 5.1, 7.1), and its rate in Hz
Sound = tuple[Callable[[], Iterable[F32]], int]
#: `[2, n]` float32, and whether all that it is a piece of is of 16 bits (None: it is all)
Piece = tuple[F32, bool | None]


class JoinedSound:
    """Sound of stretches one after the other; what two of them share is held, and a piece.

    Attributes:
        rest: the end of the last stretch, `[2, n]`, which the next one begins with as well.
    """

    def __init__(self, sampling_rate: int) -> None:
        self._rate = sampling_rate
        self.rest: F32 = np.zeros((2, 0), np.float32)

    def stretch(self, sound: Sound | None, length: int, shared: int) -> Iterator[Piece]:
        """Pieces of the next stretch without its end, which becomes `rest`. Its sound is asked for
        twice where it seems to be of 16 bits: one sample that is not tells how all are written.

        Args:
            sound: of the stretch; None: silence.
            length: samples of the stretch; a shorter sound is silent then.
            shared: how many of them are its end.
        """
        old = self.rest

        def halves() -> Iterator[tuple[F32, F32]]:
            return _split(_faded(old, self._fitted(sound, length)), length - shared)

        of_16_bits = all(is_of_16_bits(body) for body, _ in halves())
        ends = [np.zeros((2, 0), np.float32)]
        for body, end in halves():
            if end.size:
                ends.append(end)
            if body.size:
                yield body, of_16_bits
        self.rest = np.concatenate(ends, axis=1)

    def _fitted(self, sound: Sound | None, length: int) -> Iterator[F32]:
        """A sound at our rate and of this length."""
        position = 0
        if sound is not None:
            pieces, rate = sound
            stereo = (mixed_down(piece, LAYOUTS[len(piece)], rate) for piece in pieces())
            for piece in resampled_pieces(stereo, rate, self._rate):
                yield piece[:, : length - position]
                position = min(length, position + piece.shape[1])
        yield from silence(2, length - position)


def _faded(old: F32, pieces: Iterable[F32]) -> Iterator[F32]:
    """From the end of one sound to another: what both share is the same sound, so that amplitudes
    add up.
    """
    share = np.linspace(0, 1, old.shape[1] + 2, dtype=np.float32)[1:-1]
    for piece in pieces:
        count = min(old.shape[1], piece.shape[1])
        if count:
            mixed = old[:, :count] * (1 - share[:count]) + piece[:, :count] * share[:count]
            old, share = old[:, count:], share[count:]
            yield np.concatenate([mixed, piece[:, count:]], axis=1)
        else:
            yield piece


def _split(pieces: Iterable[F32], at: int) -> Iterator[tuple[F32, F32]]:
    """Pieces before a sample, and after it."""
    for piece in pieces:
        yield piece[:, :at], piece[:, at:]
        at = max(0, at - piece.shape[1])
