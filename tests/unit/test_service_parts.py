"""Parts of the service by themselves: schema, files of requests, queue, rows, full disks."""

from __future__ import annotations

import base64
import dataclasses
import http.server
import io
import sqlite3
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from ltx2rt.config import GenerationConfig
from ltx2rt.errors import CheckpointError, OptionError
from ltx2rt.pipelines.catalog import PIPELINES
from ltx2rt.pipelines.request import Request
from ltx2rt.pipelines.retake_inputs import RetakeInputs
from ltx2rt.service.events import error_event, percent
from ltx2rt.service.http.forms import frames_of, read_fields, read_form
from ltx2rt.service.jobs import JobRow, JobStore
from ltx2rt.service.limits import Limits
from ltx2rt.service.maker import into_folder
from ltx2rt.service.requests import Order, read_order
from ltx2rt.service.schema import REFUSED, request_schema
from ltx2rt.service.sources import Allowed, Sources
from ltx2rt.service.waiting import Waiting


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "blue").save(stream, "PNG")
    return stream.getvalue()


def test_the_schema_has_every_field() -> None:
    schema = request_schema()
    config = schema["$defs"]["GenerationConfig"]["properties"]
    names = {f.name for f in dataclasses.fields(GenerationConfig)}
    assert {*config} == names - REFUSED.keys()
    assert config["seed"] == {"type": "integer", "description": "of all noise", "default": 10}
    assert schema["properties"]["pipeline"]["enum"] == [*PIPELINES]
    assert schema["$defs"]["RetakeInputs"]["required"] == ["video"]
    assert schema["$defs"]["Lora"]["additionalProperties"] is False


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    media, loras = tmp_path / "media", tmp_path / "loras"
    (media / "in").mkdir(parents=True)
    loras.mkdir()
    (media / "in/a.png").write_bytes(png())
    (loras / "style.safetensors").write_bytes(b"")
    (tmp_path / "outside.png").write_bytes(png())
    (media / "link.png").symlink_to(tmp_path / "outside.png")
    allowed = Allowed(media_dir=media, lora_dir=loras)
    return Sources(folder=tmp_path / "job", allowed=allowed, limits=Limits(max_media_bytes=50_000))


def order(sources: Sources, **config: Any) -> Order:
    return read_order({"config": {"prompt": "a", **config}}, sources)


def test_files_are_found(sources: Sources, tmp_path: Path) -> None:
    upload = tmp_path / "upload.png"
    upload.write_bytes(png())
    sources.uploads = {"x": upload}
    data = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    named = [{"path": "in/a.png"}, {"path": data}, {"path": "upload:x", "frame": 8}]
    found = order(sources, images=named, loras=[{"path": "style", "strength": 0.5}])
    paths = [image.path for image in found.request.config.images]
    assert paths == [tmp_path / "media/in/a.png", tmp_path / "job/media-2.png", upload]
    assert paths[1].read_bytes() == png()
    assert found.request.config.loras[0].path == str(tmp_path / "loras/style.safetensors")
    assert Order.from_plain(found.plain) == found


@pytest.mark.parametrize(
    "name",
    ["../outside.png", "link.png", "/etc/passwd", "in", "in/../../outside.png", "x" * 5000, "~"],
)
def test_names_that_lead_out(sources: Sources, name: str) -> None:
    with pytest.raises(OptionError, match="not a file that requests may name"):
        order(sources, images=[{"path": name}])


def test_bombs_are_refused_by_their_heads(sources: Sources) -> None:
    head = b"IHDR" + struct.pack(">II", 9000, 9000) + png()[24:29]
    bomb = png()[:12] + head + struct.pack(">I", zlib.crc32(head)) + png()[33:]
    big = f"data:image/png;base64,{base64.b64encode(bomb).decode()}"
    with pytest.raises(OptionError, match="9000x9000 pixels; this server allows"):
        order(sources, images=[{"path": big}])
    with pytest.raises(OptionError, match="more than 50000 bytes"):
        order(sources, images=[{"path": "data:image/png;base64," + "A" * 70_000}])
    with pytest.raises(OptionError, match="more than 32 files"):
        order(sources, images=[{"path": "in/a.png"}] * 33)


@pytest.fixture
def site() -> Iterator[str]:
    """A site that has a picture, a large one, and sends askers elsewhere."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/away":
                self.send_response(302)
                self.send_header("location", "/a.png")
            else:
                self.send_response(200)
                self.send_header("content-type", "image/png")
            self.end_headers()
            self.wfile.write(png() if self.path == "/a.png" else b"x" * 60_000)

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_only_allowed_origins_are_asked(sources: Sources, site: str) -> None:
    with pytest.raises(OptionError, match="fetches nothing from"):
        order(sources, images=[{"path": f"{site}/a.png"}])
    sources.allowed = dataclasses.replace(sources.allowed, origins=(site,))
    path = order(sources, images=[{"path": f"{site}/a.png"}]).request.config.images[0].path
    assert path.read_bytes() == png()
    for bad, said in (("/away", "302"), ("/large", "more than 50000 bytes")):
        with pytest.raises(OptionError, match=said):
            order(sources, images=[{"path": site + bad}])
    with pytest.raises(OptionError, match="fetches nothing from"):
        order(sources, images=[{"path": site.replace("://", "://user@") + "/a.png"}])
    with pytest.raises(OptionError, match="is not an address"):
        order(sources, images=[{"path": "http://[::1/a.png"}])


def test_forms_and_json_say_the_same() -> None:
    texts = {"prompt": "a", "size": "64x128", "seconds": "0.4", "fps": "24", "seed": "3", "n": "1"}
    form = read_form(texts, {})
    body = read_fields({"prompt": "a", "size": "64x128", "seconds": 0.4, "fps": 24.0, "seed": 3})
    assert form.data == body.data
    config = {"prompt": "a", "width": 64, "height": 128, "num_frames": 9, "seed": 3}
    assert body.data == {"config": {**config, "frame_rate": 24.0}}
    assert [frames_of(s, 24.0) for s in (0.01, 4, 5, 8)] == [1, 97, 121, 193]
    assert read_fields({"prompt": "a", "seconds": None, "size": None}).data["config"] == {
        "prompt": "a"
    }
    for rate in (None, True, "24", 0):
        with pytest.raises(OptionError, match="is not a frame rate"):
            frames_of(1, rate)
    with pytest.raises(OptionError, match="seed='x' is not a number"):
        read_form({"seed": "x"}, {})


def test_the_queue_goes_by_priority_then_time() -> None:
    waiting = Waiting()
    for name, priority, created in (("a", 0, 1.0), ("b", -1, 3.0), ("c", 0, 0.5)):
        waiting.put(JobRow(id=name, priority=priority, created=created, timeout_s=10.0))
    assert waiting.order() == ["b", "c", "a"]
    first = waiting.take(lambda: False)
    assert first is not None
    assert first.id == "b"
    assert [j.id for j in waiting.expired(10.8)] == ["c"]
    assert waiting.take(lambda: True) is None
    waiting.close()
    assert waiting.take(lambda: False) is None


def test_bundles_are_not_exchanged_for_every_clip() -> None:
    waiting = Waiting()
    for i in range(24):
        waiting.put(JobRow(id=f"{'ab'[i % 2]}{i}", model="ab"[i % 2], created=i))
    waiting.put(JobRow(id="b99", model="b", created=99, priority=1))
    peeked = waiting.peek("b")
    assert peeked is not None
    assert peeked.id == "b1"
    taken = []
    for _ in range(12):
        job = waiting.take(lambda: False, "b")
        assert job is not None
        taken.append(job.id)
    # eight of its own, then the oldest of all, which was passed over by all of them
    assert taken[:9] == ["b1", "b3", "b5", "b7", "b9", "b11", "b13", "b15", "a0"]
    assert taken[9:] == ["b17", "b19", "b21"]
    last = waiting.take(lambda: False, "b")
    assert last is not None
    assert last.id == "b23"
    only = waiting.take(lambda: False, "b")
    assert only is not None
    assert only.id == "a2"  # not b99, which has a lower priority
    assert waiting.peek("b") is None


def test_a_job_is_left_to_who_has_its_bundle() -> None:
    waiting, found = Waiting(), dict[str, str]()

    def take(model: str) -> None:
        job = waiting.take(lambda: False, model)
        found[model] = job.id if job is not None else ""

    takers = [threading.Thread(target=take, args=(m,), daemon=True) for m in ("a", "b")]
    for taker in takers:
        taker.start()
    while sum(waiting._idle.values()) < 2:
        threading.Event().wait(0.01)
    waiting.put(JobRow(id="for b", model="b"))
    takers[1].join(60)
    assert found == {"b": "for b"}
    waiting.put(JobRow(id="for b too", model="b"))  # its taker is busy
    takers[0].join(60)
    assert found["a"] == "for b too"


def test_rows_of_a_version_with_one_bundle(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    JobStore(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE jobs DROP COLUMN model")
        db.execute("PRAGMA user_version = 1")
        names = [f.name for f in dataclasses.fields(JobRow) if f.name != "model"]
        row = JobRow(id="old")
        texts = [v if isinstance(v := getattr(row, n), str | int | float) else "{}" for n in names]
        named = ", ".join(f'"{n}"' for n in names)
        db.execute(f"INSERT INTO jobs ({named}) VALUES ({', '.join('?' * len(names))})", texts)
        db.commit()
    for _ in range(2):
        store = JobStore(path)
        assert store.get("old") == row
        store.close()


def test_rows_come_back(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    rows = [JobRow(id=f"j{i}", owner="o", created=i, order={"é": [1]}) for i in range(5)]
    for row in rows:
        store.put(row)
    store.put(dataclasses.replace(rows[0], state="failed", finished=9.0))
    assert store.get("j1") == rows[1]
    assert [r.id for r in store.page("o", rows[3], 2, newest_first=True)] == ["j2", "j1"]
    assert [r.id for r in store.page("o", rows[1], 9, newest_first=False)] == ["j2", "j3", "j4"]
    assert store.page("other", None, 9, newest_first=True) == []
    assert [r.id for r in store.unfinished()] == ["j1", "j2", "j3", "j4"]
    assert store.finished() == [("j0", 9.0)]
    store.close()
    (tmp_path / "text").write_text("no database, but text that is long enough to be looked at" * 9)
    with pytest.raises(OptionError, match="is not a database of jobs"):
        JobStore(tmp_path / "text")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4.part").symlink_to("/dev/full")
    clip: Any = SimpleNamespace(save=lambda stream, **_: stream.write(b"x" * 9999))
    with pytest.raises(OSError, match="No space left") as caught:
        into_folder(tmp_path)(clip, "video", lambda _: None)
    assert cast(str, error_event(caught.value).data["kind"]) == "DiskFull"
    assert not [*tmp_path.iterdir()]
    # what keeps finished stages says it in a sentence of its own, which names our folders
    stage = CheckpointError("cannot write /srv/jobs/x/context.safetensors")
    assert error_event(stage).data["kind"] == "CheckpointError"
    stage.__cause__ = caught.value
    full = error_event(stage).data
    assert full["kind"] == "DiskFull"
    assert "/srv" not in full["message"]


def test_progress_never_goes_back() -> None:
    steps = [("prompt", 1, 2), ("stage_1", 1, 8), ("stage_1", 8, 8), ("other", 1, 1)]
    steps += [("stage_2", 3, 3), ("decode audio", 0, 1), ("decode video", 1, 1)]
    seen = [0]
    for stage, step, total in steps:
        seen.append(percent(stage, step, total, seen[-1]))
    assert seen == sorted(seen)
    assert seen[-1] == 99


def test_a_larger_picture_around_a_clip_is_limited_too() -> None:
    own = RetakeInputs(video=Path("a.mp4"), outpaint="9000x9000")
    request = Request(config=GenerationConfig(prompt="a"), inputs=own)
    assert any("pixels are asked for" in problem for problem in Limits().problems(request))
