"""Attack a target so many times, and say what happened."""

from __future__ import annotations

import random
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from ltx2rt.errors import Ltx2rtError
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import Target

#: no hostile file may take longer, or more memory, than these
LIMIT_S, LIMIT_BYTES = 20, 600 << 20


class Hangs(Exception):
    """It took longer than `LIMIT_S`."""


@dataclass
class Outcome:
    """What became of the inputs.

    Attributes:
        refused: one sentence of ours.
        accepted: read as if nothing was wrong: the damage is in what is not looked at.
        faults: anything else: a traceback, a hang, something written; the input's number and text.
        slowest_s, memory_bytes: of one input; growth of the process over all.
    """

    refused: int = 0
    accepted: int = 0
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    memory_bytes: int = 0

    @property
    def tried(self) -> int:
        return self.refused + self.accepted + len(self.faults)


@contextmanager
def _limited() -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attack(target: Target, folder: Path, numbers: range) -> Outcome:
    """Try the mutations of these numbers; each is the same every time."""
    seed, outcome = target.seed(folder), Outcome()
    path = folder / target.name
    before = _peak_bytes()
    for number in numbers:
        path.write_bytes(mutated(seed, random.Random(number)))
        start = time.monotonic()
        try:
            with _limited(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target.read(path)
            outcome.accepted += 1
        except Ltx2rtError:
            outcome.refused += 1
        except Exception:  # what is looked for
            outcome.faults.append(f"input {number}: {traceback.format_exc(limit=-3)}")
        outcome.slowest_s = max(outcome.slowest_s, time.monotonic() - start)
        if written := [p.name for p in folder.iterdir() if p != path]:
            outcome.faults.append(f"input {number} wrote {written}")
            break
    outcome.memory_bytes = _peak_bytes() - before
    if outcome.memory_bytes > LIMIT_BYTES:
        outcome.faults.append(f"{outcome.memory_bytes} bytes of memory")
    path.unlink()
    return outcome


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
