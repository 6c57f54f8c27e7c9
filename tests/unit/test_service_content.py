"""The moments at which a clip's file is asked for: while it grows, takes its name, is finished."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.responses import Response

from ltx2rt.service.http.answers import RefusalError
from ltx2rt.service.http.content import content_answer
from ltx2rt.service.jobs import JobRow
from ltx2rt.service.service import Service

CLIP = b"ftyp moof mdat"


class Place(Service):
    """A job and its files, without a worker; `meanwhile` happens when its row is looked at."""

    def __init__(self, folder: Path) -> None:
        self.settings = SimpleNamespace(data_dir=folder)  # type: ignore[assignment]
        self.row = JobRow(id="video_1", created=0.0, kind="video", order={}, state="in_progress")
        self.meanwhile: Callable[[], None] = lambda: None
        self.folder_of(self.row.id).mkdir(parents=True)

    @property
    def whole(self) -> Path:
        return self.folder_of(self.row.id) / "clip.mp4"

    @property
    def part(self) -> Path:
        return self.whole.with_name("clip.mp4.part")

    def get(self, job: str, owner: str = "") -> JobRow | None:
        self.meanwhile()
        return self.row

    def complete(self) -> None:
        self.row = replace(self.row, state="completed")


def sent(answer: Response) -> bytes:
    async def receive() -> Any:
        await asyncio.Event().wait()

    found: list[Any] = []

    async def send(message: Any) -> None:
        found.append(message)

    scope = {"type": "http", "method": "GET", "headers": [], "extensions": {}}
    asyncio.run(answer(scope, receive, send))
    assert found[0]["status"] == 200
    assert not found[-1].get("more_body", False)
    return b"".join(message.get("body", b"") for message in found)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_clip_that_takes_its_name_while_it_is_read(place: Place) -> None:
    place.part.write_bytes(CLIP[:5])
    answer = content_answer(place, place.row, None)

    def finish() -> None:
        place.meanwhile = place.complete
        with place.part.open("ab") as file:
            file.write(CLIP[5:])
        place.part.replace(place.whole)

    place.meanwhile = finish
    assert sent(answer) == CLIP


def test_a_clip_with_its_name_and_a_row_that_is_not_written_yet(place: Place) -> None:
    """The worker renames first; the server writes the row when it hears of it."""
    place.whole.write_bytes(CLIP)
    answer = content_answer(place, place.row, None)
    place.meanwhile = place.complete
    assert sent(answer) == CLIP


def test_a_clip_that_is_finished_between_two_looks(place: Place) -> None:
    """The row that was read says that it grows; the part is gone, and the row says more by now."""
    before = place.row
    place.whole.write_bytes(CLIP)
    place.meanwhile = place.complete
    assert sent(content_answer(place, before, None)) == CLIP


def test_a_clip_that_is_not_there(place: Place) -> None:
    with pytest.raises(RefusalError, match="has no content yet"):
        content_answer(place, place.row, None)
    place.complete()
    with pytest.raises(RefusalError, match="is not there any more"):
        content_answer(place, place.row, None)
