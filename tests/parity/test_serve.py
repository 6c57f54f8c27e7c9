"""`ltx2rt serve` as its clients see it: one real server for all of these tests."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

import ltx2rt
from ltx2rt.media.reader import probe_video
from ltx2rt.service.jobs import JobRow, JobStore
from ltx2rt.service.schema import request_schema
from tests.parity.command_line import expect_user_error, unchanged
from tests.parity.command_line import ltx2rt as run
from tests.parity.http_server import LONGER, SMALL, Server, serving, waited
from tests.unit.test_house_rules import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def server(demo_bundle: Path, folder: Path) -> Iterator[Server]:
    (folder / "media").mkdir()
    (folder / "loras").mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "media/red.png")
    Image.new("RGB", (200, 200)).save(folder / "media/vast.png")
    (folder / "media/text.png").write_text("no picture")
    (folder / "secret.png").write_bytes((folder / "media/red.png").read_bytes())
    flags = (
        "--media-dir", folder / "media", "--lora-dir", folder / "loras", "--model", "demo",
        "--max-queue", 8, "--max-frames", 200, "--max-body-bytes", 1_000_000,
        "--max-media-pixels", 30_000,
    )  # fmt: skip
    with serving(demo_bundle, folder, *flags) as server:
        yield server


@pytest.fixture(scope="module")
def direct(demo_bundle: Path) -> bytes:
    """The clip of `SMALL`, made without a server."""
    stream = io.BytesIO()
    with ltx2rt.DistilledPipeline(
        ltx2rt.open_bundle(demo_bundle), ltx2rt.RuntimeConfig(threads=1)
    ) as pipe:
        pipe(prompt="a lake", height=64, width=64, num_frames=9).save(stream)
    return stream.getvalue()


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_openai_client(server: Server, direct: bytes, folder: Path) -> None:
    videos = client(server).videos
    assert [m.id for m in client(server).models.list()] == ["demo"]
    made: Any = videos.create(prompt="a lake", size="64x64", seconds="0.4")  # type: ignore[arg-type]
    assert made.status == "queued"
    found = server.finished(made.id)
    assert found["status"] == "completed", found
    assert (found["seconds"], found["size"], found["progress"]) == ("0.375", "64x64", 100)
    assert videos.download_content(made.id).read() == direct
    picture = folder / "media/red.png"
    second: Any = videos.create(
        prompt="a lake",
        model="demo",
        size="64x64",
        seconds="0.4",
        input_reference=picture,  # type: ignore[arg-type]
    )
    assert server.finished(second.id)["status"] == "completed"
    assert server.content(second.id) != direct
    shown = server.video(second.id)["ltx2rt"]["record"]["request"]["config"]["images"][0]["path"]
    assert shown == "upload-0.png"
    assert [v.id for v in videos.list(limit=1)][:2] == [second.id, made.id]
    assert videos.delete(second.id).deleted
    with pytest.raises(openai.NotFoundError):
        videos.retrieve(second.id)
    assert not (server.data / "jobs" / second.id).exists()
    with pytest.raises(openai.NotFoundError, match="no model 'sora-2'"):
        videos.create(prompt="x", model="sora-2")


def test_the_examples_of_the_page(server: Server, folder: Path, direct: bytes) -> None:
    """The blocks of docs/serving.md, at a small size."""
    text = (ROOT / "docs/serving.md").read_text()
    small = {
        "127.0.0.1:8000": f"127.0.0.1:{server.port}",
        "localhost:8000": f"localhost:{server.port}",
        "768x512": "64x64",
        'seconds="5"': 'seconds="0.4"',
        "seconds=5": "seconds=0.4",
        "num_frames=121": "num_frames=9",
    }
    for long, short in small.items():
        assert long in text
        text = text.replace(long, short)
    (folder / "first.png").write_bytes((folder / "media/red.png").read_bytes())
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks] == ["sh", "python"]
    for kind, block in blocks:
        if kind == "sh" and shutil.which("curl") is None:
            continue
        command = ["bash", "-ec", block] if kind == "sh" else [sys.executable, "-c", block]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert probe_video(folder / "lake.mp4").num_frames == 9
        (folder / "lake.mp4").unlink()


def test_our_client(server: Server, tmp_path: Path, direct: bytes) -> None:
    small = ("--height", 64, "--width", 64, "--seconds", 0.4)
    target = tmp_path / "client.mp4"
    seen = ("--preview", tmp_path / "seen.webp", "--preview-every", 4)
    made = run("client", "--url", server.url, "--prompt", "a lake", *small, *seen, "-o", target)
    assert made.code == 0, made
    assert Image.open(tmp_path / "seen.webp").size == (16, 16)  # of stage 2
    assert made.out == f"{target}: 9 frames, seed 10\n"
    assert "stage_2: 3/3" in made.err
    assert target.read_bytes() == direct
    for flags, said in (
        (("--width", 65), "Nearest valid"),
        (("--pipeline", "retke"), "did you mean 'retake'"),
        (("--lora", "style"), "has no LoRA 'style'"),
        (("--preview", tmp_path / "x.png"), "is not the name of a .webp file"),
        (("--preview", tmp_path / "x.webp", "--preview-every", 0), "--preview-every 0 is less"),
    ):
        with unchanged(tmp_path):
            expect_user_error(
                run(
                    "client", "--url", server.url, "--prompt", "x", *flags, "-o", tmp_path / "x.mp4"
                ),
                said,
            )
    with unchanged(tmp_path):
        nobody = "http://127.0.0.1:9"
        expect_user_error(
            run("client", "--url", nobody, "--prompt", "x", "-o", tmp_path / "x.mp4"),
            f"cannot reach {nobody}: [Errno 111] Connection refused; start a server with",
        )


def test_one_call_that_waits(server: Server, direct: bytes) -> None:
    form = (
        b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\na lake\r\n'
        b'--b\r\ncontent-disposition: form-data; name="size"\r\n\r\n64x64\r\n'
        b'--b\r\ncontent-disposition: form-data; name="num_frames"\r\n\r\n9\r\n--b--\r\n'
    )
    kind = {"content-type": "multipart/form-data; boundary=b"}
    answer = server.call("POST", "/v1/videos/sync", form, kind)
    assert (answer.status, answer.body) == (200, direct)
    assert float(answer.headers["x-inference-time-s"]) > 0
    whole = {"request": {"config": {"prompt": "a lake", "height": 64, "width": 64}}}
    again = server.call("POST", "/v1/videos/sync", {**whole, "num_frames": 9, "seed": 10})
    assert again.body == direct


def test_a_clip_is_read_while_it_grows(server: Server, folder: Path) -> None:
    job = server.create(**LONGER)
    assert server.call("GET", f"/v1/videos/{job}/content").status in (200, 409)
    waited(lambda: server.video(job)["ltx2rt"]["bytes"], "bytes")
    part = server.call("GET", f"/v1/videos/{job}/content", headers={"range": "bytes=4-99"})
    assert part.status == 206
    followed = server.content(job)
    final = server.finished(job)
    assert final["status"] == "completed", final
    whole = server.content(job)
    assert followed == whole
    assert part.body == whole[4 : 4 + len(part.body)]
    (folder / "grown.mp4").write_bytes(whole)
    assert probe_video(folder / "grown.mp4").num_frames == 49
    parts = server.call("GET", f"/v1/videos/{job}/content", headers={"range": "bytes=10-19"})
    assert (parts.status, parts.body) == (206, whole[10:20])
    assert final["ltx2rt"]["timings_s"]["first_fragment"] < final["ltx2rt"]["timings_s"]["total"]
    assert server.call("HEAD", f"/v1/videos/{job}/content").status == 200


def test_events(server: Server) -> None:
    job = server.create(**SMALL)
    text = server.call("GET", f"/v1/videos/{job}/events").body.decode()
    kinds = [line.removeprefix("event: ") for line in text.splitlines() if line[:6] == "event:"]
    assert kinds[0] == "state"
    assert kinds[-1] == "result"
    assert {"progress", "fragment"} <= {*kinds}
    last = json.loads(text.strip().splitlines()[-1].removeprefix("data: "))
    assert last["status"] == "completed"


def test_previews(server: Server, direct: bytes) -> None:
    job = server.create(**SMALL, preview=2, priority=-1)
    text = server.call("GET", f"/v1/videos/{job}/events").body.decode()
    told = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    shown = [(e["stage"], e["step"], e["total"]) for e in told if "webp" in e]
    # after every second step and the last one of a stage
    assert shown == [("stage_1", i, 8) for i in (2, 4, 6, 8)] + [("stage_2", i, 3) for i in (2, 3)]
    webps = [base64.b64decode(e["webp"]) for e in told if "webp" in e]
    assert {Image.open(io.BytesIO(w)).size for w in webps} == {(8, 8), (16, 16)}
    assert server.content(job) == direct  # which seeing it changes nothing of
    assert server.call("GET", f"/v1/videos/{job}/preview").status == 409
    longer = server.create(**LONGER, preview=1)
    waited(lambda: server.video(longer)["ltx2rt"]["preview"], "a preview")
    answer = server.call("GET", f"/v1/videos/{longer}/preview")
    assert answer.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(answer.body)).format == "WEBP"
    server.call("DELETE", f"/v1/videos/{longer}")
    waited(lambda: not (server.data / "jobs" / longer).exists(), "its folder to go")
    [model] = server.call("GET", "/v1/models").json["data"]
    assert {*model["pipelines"]} - {*model["previews"]} == {"text-to-audio"}


BAD: list[tuple[Any, str]] = [
    ([], "not an object"),
    (b"{", "not JSON"),
    ({"prompt": "x", "promt": 1}, "'promt' is unknown; did you mean 'prompt'?"),
    ({"prompt": 1}, "prompt is not text"),
    ({"size": "64x64"}, "the prompt is empty"),
    ({"prompt": "x", "size": "65x64"}, "Nearest valid"),
    ({"prompt": "x", "size": "big"}, "WIDTHxHEIGHT"),
    ({"prompt": "x", "num_frames": 10}, "num_frames"),
    ({"prompt": "x", "num_frames": 1e400}, "not JSON"),
    ({"prompt": "x", "num_frames": 801}, "this server allows 200"),
    ({"prompt": "x", "width": 64000, "height": 64000}, "this server allows"),
    ({"prompt": "x", "seed": 2**70}, "seed"),
    ({"prompt": "x" * 30_000}, "this server allows 20000"),
    ({"prompt": "\ud800"}, "UTF-8"),
    ({"prompt": "x", "num_inference_steps": 10}, "it is not guided"),
    ({"prompt": "x", "guidance_scale": 4}, "it is not guided"),
    ({"prompt": "x", "pipeline": "one-stge"}, "did you mean 'one-stage'?"),
    ({"prompt": "x", "pipeline": "retake"}, "needs"),
    ({"prompt": "x", "input_reference": "../secret.png"}, "is not a file that requests may name"),
    ({"prompt": "x", "input_reference": "/etc/passwd"}, "is not a file that requests may name"),
    ({"prompt": "x", "input_reference": "a\0b"}, "is not a file that requests may name"),
    ({"prompt": "x", "input_reference": "text.png"}, "is not a picture, video or sound"),
    ({"prompt": "x", "input_reference": "vast.png"}, "200x200 pixels; this server allows"),
    ({"prompt": "x", "input_reference": "file:///etc/passwd"}, "fetches nothing from"),
    ({"prompt": "x", "input_reference": "http://127.0.0.1:1/a.png"}, "fetches nothing from"),
    ({"prompt": "x", "input_reference": "data:text/html;base64,AAAA"}, "not allowed; allowed"),
    ({"prompt": "x", "input_reference": "data:image/png;base64,A"}, "not base64"),
    ({"prompt": "x", "loras": ["../../x"]}, "has no LoRA"),
    ({"prompt": "x", "config": {"hdr": "ACESCG"}}, "hdr cannot be used here"),
    ({"prompt": "x", "config": {"embeddings": "e"}}, "embeddings cannot be used here"),
    ({"prompt": "x", "schema": 2}, "this server reads 1"),
    ({"prompt": "x", "timeout_s": -1}, "is not in [0"),
    ({"prompt": "x", "preview": -1}, "preview=-1 is not a number of steps"),
    ({"prompt": "x", "preview": True}, "preview=True is not a whole number"),
    ({"prompt": "x", "preview": 1, "pipeline": "text-to-audio"}, "sound, which has no previews"),
    ({"prompt": "x", "priority": 1000}, "is not in [-100, 100]"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "said"), BAD, ids=[said[:30] for _, said in BAD])
def test_bad_requests(server: Server, body: Any, said: str) -> None:
    before = sorted((server.data / "jobs").iterdir())
    answer = server.call("POST", "/v1/videos", body)
    assert answer.status == 400, answer
    assert said in answer.json["error"]["message"]
    assert sorted((server.data / "jobs").iterdir()) == before
    assert not [*(server.data / "uploads").iterdir()]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/videos/..%2f..%2fjobs.sqlite/content", 404),
        ("/v1/videos/../../../etc/passwd", 404),
        ("/v1/videos/%2e%2e/content", 404),
        ("/..%2f..%2fetc/passwd", 404),
        ("/page.js/../../keys.py", 404),
        ("/v1/videos/x%00y", 404),
        ("/v1/videos?limit=0", 400),
        ("/v1/videos?limit=9999999999999999999", 400),
        ("/v1/videos?after=none", 404),
        ("/v1/videos?order=up", 400),
        ("/nowhere", 404),
    ],
)
def test_paths_that_lead_nowhere(server: Server, path: str, status: int) -> None:
    answer = server.call("GET", path)
    assert answer.status == status
    assert "error" in answer.json


def test_other_sites_and_large_bodies(server: Server) -> None:
    assert server.call("GET", "/v1/models", headers={"host": "evil.example"}).status == 421
    assert server.call("GET", "/v1/models", headers={"origin": "http://evil.example"}).status == 403
    assert server.call("POST", "/v1/videos", b"x" * 1_000_001).status == 413
    # a body that no socket buffers: the client still reads why, not a broken pipe
    assert server.call("POST", "/v1/videos", b"x" * 30_000_000).status == 413
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(
            b"POST /v1/videos HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        line.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        try:
            for _ in range(30):
                line.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        except OSError:
            pass  # it hung up: enough was sent
        assert b" 413 " in line.recv(1000)
    assert server.call("DELETE", "/v1/models").status == 405


def test_cancel_priority_deadline(server: Server) -> None:
    running = server.create(**{**LONGER, "seed": 1})
    server.until(running, "in_progress")
    late = server.create(**SMALL, timeout_s=0.05)
    queued = server.create(**SMALL)
    urgent = server.create(**SMALL, priority=-1, seed=3)
    order = [server.video(j)["ltx2rt"]["position"] for j in (urgent, late, queued)]
    assert order[0] == 0
    assert server.call("POST", f"/v1/videos/{queued}/cancel").json["error"]["code"] == "Cancelled"
    assert server.call("POST", f"/v1/videos/{running}/cancel").status == 200
    ended = server.finished(running)
    assert ended["error"]["code"] == "Cancelled"
    assert server.call("GET", f"/v1/videos/{running}/content").status == 409
    assert server.finished(urgent)["status"] == "completed"
    assert server.finished(late)["error"]["code"] == "Deadline"
    for job in (running, late, queued):
        assert not [*(server.data / "jobs" / job).glob("**/*")]
    jobs = [server.create(**SMALL, seed=i) for i in range(7)]
    full = [server.call("POST", "/v1/videos", SMALL).status for _ in range(4)]
    assert 429 in full
    for job in jobs[:-1]:  # deleted while one of them is being made
        assert server.call("DELETE", f"/v1/videos/{job}").status == 200
    assert server.finished(jobs[-1])["status"] == "completed"
    waited(lambda: not (server.data / "jobs" / jobs[0]).exists(), "its folder to go")
    rest = [v["id"] for v in server.call("GET", "/v1/videos?limit=100").json["data"]]
    for job in rest:
        server.finished(job)


def test_a_killed_worker_is_replaced(server: Server) -> None:
    job = server.create(**{**LONGER, "seed": 5})
    waited(lambda: server.video(job)["ltx2rt"]["stage"] == "decode audio", "the end of stage 2")
    os.kill(server.worker(), signal.SIGKILL)
    assert server.call("GET", "/health/ready").status == 503
    assert server.call("GET", "/health").status == 200
    assert server.finished(job)["status"] == "completed"
    text = server.call("GET", "/metrics").body.decode()
    assert 'ltx2rt_worker_restarts{device="0"} 1.0' in text
    assert 'ltx2rt_stages_kept_total{model="demo"} 2.0' in text
    assert server.call("GET", "/health/ready").status == 200


def test_a_client_that_hangs_up_cancels(server: Server) -> None:
    body = json.dumps({**LONGER, "seed": 6}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(
            b"POST /v1/videos/sync HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s"
            % (len(body), body)
        )
        newest = lambda: server.call("GET", "/v1/videos?limit=1").json["data"][0]  # noqa: E731
        job = waited(lambda: v if (v := newest())["status"] == "in_progress" else None, "a job")
    assert server.finished(job["id"])["error"]["code"] == "Cancelled"


def fuzzed(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Requests with random values in the fields of the schema, few of which can be made."""
    schema = request_schema()
    chance = random.Random(seed)
    odd = [None, True, -1, 0, 1.5, 1e308, 2**63, "", "\0", "é" * 9, [], {}, [[]], {"a": None}, "64"]

    def value(entry: dict[str, Any], depth: int) -> Any:
        if chance.random() < 0.3 or depth > 4:
            return chance.choice(odd)
        if "$ref" in entry:
            return value(schema["$defs"][entry["$ref"].rpartition("/")[2]], depth)
        if "anyOf" in entry:
            return value(chance.choice(entry["anyOf"]), depth)
        if "enum" in entry:
            return chance.choice(entry["enum"])
        if entry.get("type") == "object":
            names = [n for n in entry.get("properties", {}) if chance.random() < 0.4]
            return {n: value(entry["properties"][n], depth + 1) for n in names}
        if entry.get("type") == "array":
            return [value(entry.get("items") or {}, depth + 1) for _ in range(chance.randint(0, 3))]
        return chance.choice(odd)

    for _ in range(count):
        parts = schema["properties"].items()
        yield {name: value(entry, 0) for name, entry in parts if chance.random() < 0.6}


def send_fuzzed(server: Server, count: int, seed: int) -> None:
    statuses = set()
    for body in fuzzed(count, seed):
        answer = server.call("POST", "/v1/videos", body)
        statuses.add(answer.status)
        assert answer.status in (200, 400, 429), (body, answer)
        if answer.status == 200:
            server.call("DELETE", f"/v1/videos/{answer.json['id']}")
        else:
            assert answer.json["error"]["message"], body
    assert 400 in statuses


def test_random_requests(server: Server) -> None:
    send_fuzzed(server, 150, 0)


@pytest.mark.fuzz
def test_many_random_requests(server: Server) -> None:
    send_fuzzed(server, 10_000, 1)


def test_jobs_survive_a_restart(demo_bundle: Path, folder: Path, direct: bytes) -> None:
    """SIGTERM under load ends with status 0; nothing is lost, and nothing made twice."""
    place = folder / "restarted"
    with serving(demo_bundle, place, "--grace", 0) as first:
        done = first.create(**SMALL)
        assert first.finished(done)["status"] == "completed"
        jobs = [first.create(**LONGER), first.create(**SMALL)]
        waited(lambda: first.video(jobs[0])["ltx2rt"]["stage"] == "decode audio", "stage 2")
        assert first.end() == 0
    kept = {p.name for p in (place / "data/jobs" / jobs[0] / "stages").iterdir()}
    assert {"stage_1.stage.safetensors", "stage_2.stage.safetensors"} <= kept
    with serving(demo_bundle, place) as second:
        assert second.content(done) == direct
        assert [second.finished(j)["status"] for j in jobs] == ["completed", "completed"]
        assert second.content(jobs[1]) == direct
        text = second.call("GET", "/metrics").body.decode()
        assert "ltx2rt_stages_kept_total{model=" in text
        assert text.partition("ltx2rt_stages_kept_total{")[2].splitlines()[0].endswith(" 2.0")
        last = second.create(**SMALL)
        second.until(last, "in_progress")
        assert second.end() == 0  # within its grace: finished
    state = {p.name for p in (place / "data/jobs" / last).iterdir()}
    assert state == {"clip.mp4"}


def test_several_bundles(demo_bundle: Path, folder: Path, direct: bytes) -> None:
    """A device has one of them at a time; one that cannot be loaded costs only its own jobs."""
    place = folder / "several"
    other, broken = place / "other.bundle", place / "broken.bundle"
    (place / "data/jobs").mkdir(parents=True)
    other.symlink_to(demo_bundle)
    shutil.copytree(demo_bundle, broken, symlinks=True)
    store = JobStore(place / "data/jobs.sqlite")
    store.put(JobRow(id="video_0", model="gone", order={"config": {"prompt": "a lake"}}))
    store.close()
    with serving(demo_bundle, place, "--model", "a", "--model", "b", "--model", "c",
                 others=[other, broken]) as server:  # fmt: skip
        (broken / "manifest.json").rename(broken / "manifest.away")
        models = server.call("GET", "/v1/models").json["data"]
        assert [m["id"] for m in models] == ["a", "b", "c"]
        assert server.call("GET", "/v1/models/b").json["pipelines"] == models[0]["pipelines"]
        assert "ltx2rt_worker_model{" in (text := server.call("GET", "/metrics").body.decode())
        assert 'ltx2rt_worker_model{device="0",model="a"} 1.0' in text
        jobs = [server.create(**SMALL, model=name) for name in ("b", "c", "a")]
        ended = [server.finished(job) for job in jobs]
        assert [e["status"] for e in ended] == ["completed", "failed", "completed"]
        assert "the worker ended 2 times" in ended[1]["error"]["message"]
        assert "manifest.json" in ended[1]["error"]["message"]
        assert [e["model"] for e in ended] == ["b", "c", "a"]
        assert server.content(jobs[0]) == server.content(jobs[2]) == direct
        assert "goes from a to b" in server.log.read_text()
        text = server.call("GET", "/metrics").body.decode()
        for line in ('{model="b",outcome="completed"} 1.0', '{model="c",outcome="WorkerLost"} 1.0'):
            assert f"ltx2rt_jobs_total{line}" in text
        unknown = server.call("POST", "/v1/videos", {**SMALL, "model": "d"})
        assert unknown.status == 404
        assert "this server has 'a', 'b', 'c'" in unknown.json["error"]["message"]
    store = JobStore(place / "data/jobs.sqlite")
    gone = store.get("video_0")
    store.close()
    assert gone is not None
    assert gone.error == "this server has no model 'gone' any more."
