"""Video and audio side by side; an absent one stays absent."""

from __future__ import annotations

from ltx2rt.latents.streams import Streams


def test_changes_reach_what_is_there_in_order() -> None:
    seen: list[tuple[str, int, int]] = []

    def add(name: str, a: int, b: int) -> int:
        seen.append((name, a, b))
        return a + b

    both = Streams(1, 2).named(add, Streams(10, 20))
    assert tuple(both) == (11, 22)
    assert seen == [("video", 1, 10), ("audio", 2, 20)]
    assert dict(both.items()) == {"video": 11, "audio": 22}


def test_what_one_side_lacks_is_absent() -> None:
    assert tuple(Streams(None, 2).map(lambda a: -a)) == (None, -2)
    assert tuple(Streams(1, 2).map(lambda a, b: a + b, Streams[int](3, None))) == (4, None)
    assert list(Streams[int](None, None).items()) == []
