"""From a good file to a hostile one: by bytes, by numbers in it, and by the values of its JSON."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

#: what takes the place of a value in JSON
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 10**400, 0.5, float("nan"), float("inf"), -float("inf"), "",
    "\0", "\ud800", "../../etc/passwd", "/dev/zero", "a" * 100_000, "\x1b[31m", [], {}, [[]] * 50,
    {"a": {"b": {}}},
)  # fmt: skip
#: what takes the place of four or eight bytes
NUMBERS = (0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def mutated(seed: bytes, draw: random.Random) -> bytes:
    """One of many damaged forms of a file."""
    change = draw.choice((_bits, _cut, _splice, _number, _json, _json, _nested, _garbage))
    return change(seed, draw)


def _bits(seed: bytes, draw: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def _cut(seed: bytes, draw: random.Random) -> bytes:
    return seed[: draw.randrange(len(seed))]


def _splice(seed: bytes, draw: random.Random) -> bytes:
    one, two = sorted(draw.randrange(len(seed)) for _ in range(2))
    return draw.choice((seed[:one] + seed[two:], seed[:two] + seed[one:], seed + seed[one:two]))


def _number(seed: bytes, draw: random.Random) -> bytes:
    size, layout = draw.choice(((4, "<I"), (4, ">I"), (8, "<Q"), (8, ">Q")))
    if len(seed) <= size:
        return b""
    place = draw.randrange(min(len(seed) - size, 4096))
    value = draw.choice(NUMBERS) % 2 ** (8 * size)
    return seed[:place] + struct.pack(layout, value) + seed[place + size :]


def _garbage(seed: bytes, draw: random.Random) -> bytes:
    return seed[: draw.choice((0, 4, 8, 16))] + draw.randbytes(draw.randrange(400))


def _nested(seed: bytes, draw: random.Random) -> bytes:
    depth = draw.choice((100, 5000, 100_000))
    return draw.choice((b"[", b'{"a":')) * depth


def _json(seed: bytes, draw: random.Random) -> bytes:
    """Another value, name or length somewhere in the JSON of the file, which may be all of it or
    the header of safetensors.
    """
    head = 8 if seed[8:9] == b"{" else 0
    end = head + int.from_bytes(seed[:8], "little") if head else len(seed)
    try:
        document = json.loads(seed[head:end])
    except ValueError:
        return _bits(seed, draw)
    edit(document, draw)
    text = json.dumps(document).encode()
    return (len(text).to_bytes(8, "little") if head else b"") + text + seed[end:]


def edit(document: Any, draw: random.Random) -> None:
    """Change one place of a JSON document."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            places.append((value, key))
            if isinstance(inner, dict | list):
                walk(inner)

    walk(document)
    if not places:
        return
    holder, key = draw.choice(places)
    ways: dict[str, Callable[[], Any]] = {
        "set": lambda: holder.__setitem__(key, draw.choice(NASTY)),
        "drop": lambda: holder.__delitem__(key),
        "add": lambda: (
            holder.update({draw.choice(("", "x", "\0", "__class__")): 1})
            if isinstance(holder, dict)
            else holder.extend(holder[:3])
        ),
    }
    ways[draw.choice(("set", "set", "set", "drop", "add"))]()
