"""Prompt enhancement against a local endpoint: answers, errors, time-outs, garbage, the cache."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltx2rt.cli.__main__ import main
from ltx2rt.components.enhance import (
    IMAGE_SIDE,
    SYSTEM_PROMPTS,
    EnhanceConfig,
    clean,
    enhance_prompt,
)
from ltx2rt.errors import EnhanceError, Ltx2rtError, MediaError, OptionError

ANSWER = "1. “A lake” — it’s calm."
CLEANED = "A lake\" - it's calm."


class Endpoint(ThreadingHTTPServer):
    """Answers as its attributes say, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.status = 200
        self.body = json.dumps({"choices": [{"message": {"content": ANSWER}}]}).encode()
        self.wait_s = 0.0
        self.raw = b""
        self.trickle = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent when a client hangs up: the timeout test makes it do so."""


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, dict(self.headers), json.loads(body)))
        time.sleep(self.server.wait_s)
        if self.server.raw:
            self.wfile.write(self.server.raw)
            return
        if self.server.trickle:
            with contextlib.suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                for _ in range(600):
                    self.wfile.write(b" ")
                    time.sleep(0.1)
            return
        self.send_response(self.server.status)
        self.send_header("Location", "http://127.0.0.1:1/")
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LTX2RT_ENHANCE_KEY", "key-1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_answers_are_cleaned_and_cached(endpoint: Endpoint) -> None:
    config = EnhanceConfig(url=endpoint.url, model="m")
    assert enhance_prompt("a lake", config, seed=7) == CLEANED
    path, headers, body = endpoint.asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer key-1"
    assert (body["model"], body["seed"]) == ("m", 7)
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert body["messages"][0]["content"] == SYSTEM_PROMPTS["text"]
    assert "a lake" in body["messages"][1]["content"]
    assert enhance_prompt("a lake", config, seed=7) == CLEANED
    assert len(endpoint.asked) == 1
    enhance_prompt("a lake", config, seed=8)
    enhance_prompt("a hill", config, seed=7)
    assert len(endpoint.asked) == 3


def test_a_damaged_cache_entry_is_asked_for_again(endpoint: Endpoint, tmp_path: Path) -> None:
    config = EnhanceConfig(url=endpoint.url, model="m")
    enhance_prompt("a lake", config)
    (entry,) = (tmp_path / "cache" / "enhanced").iterdir()
    for damage in (b"", b"[]", b'{"answer": 3}', b"\xff"):
        entry.write_bytes(damage)
        assert enhance_prompt("a lake", config) == CLEANED
    assert len(endpoint.asked) == 5


def test_the_first_frame_is_shown(endpoint: Endpoint, tmp_path: Path) -> None:
    photo = tmp_path / "p.png"
    Image.fromarray(np.full((600, 1200, 3), 200, np.uint8)).save(photo)
    config = EnhanceConfig(url=endpoint.url, model="m")
    enhance_prompt("a lake", config, image=photo)
    system, user = endpoint.asked[0][2]["messages"]
    assert system["content"] == SYSTEM_PROMPTS["image"]
    shown, text = user["content"]
    data = base64.b64decode(shown["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(data)).size == (IMAGE_SIDE, IMAGE_SIDE // 2)
    assert "a lake" in text["text"]
    Image.fromarray(np.full((600, 1200, 3), 100, np.uint8)).save(photo)
    enhance_prompt("a lake", config, image=photo)
    assert len(endpoint.asked) == 2  # another picture, another answer
    photo.write_bytes(b"no picture")
    with pytest.raises(MediaError, match="not an image that can be read"):
        enhance_prompt("a lake", config, image=photo)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"status": 500}, "answered 500"),
        ({"status": 401}, "set LTX2RT_ENHANCE_KEY"),
        ({"status": 302}, "answered 302"),
        ({"body": b"<html>"}, "did not answer as the OpenAI chat protocol says"),
        ({"body": b"[]"}, "did not answer as"),
        ({"body": b'{"choices": []}'}, "did not answer as"),
        ({"body": b'{"choices": [{"message": {"content": null}}]}'}, "missing or too long"),
        ({"body": b"{" + b" " * 1_100_000}, "it is too long"),
        ({"body": b"\xff\xfe"}, "did not answer as"),
        (
            {"body": b'{"choices": [{"message": {"content": "\\ud800"}}]}'},
            "did not answer as",
        ),
        ({"body": b'{"choices": [{"message": {"content": " 1. ..."}}]}'}, "without a single word"),
        ({"raw": b"garbage\r\n\r\n"}, "cannot reach"),
        ({"raw": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"}, "did not answer as"),
    ],
)
def test_what_endpoints_do_wrong(endpoint: Endpoint, answer: dict[str, Any], said: str) -> None:
    for name, value in answer.items():
        setattr(endpoint, name, value)
    with pytest.raises(EnhanceError) as error:
        enhance_prompt("a lake", EnhanceConfig(url=endpoint.url, model="m"))
    assert said in str(error.value)
    assert "127.0.0.1" in str(error.value)
    assert "key-1" not in str(error.value)


def test_slow_and_absent_endpoints(endpoint: Endpoint) -> None:
    endpoint.wait_s = 0.5
    with pytest.raises(EnhanceError, match=r"0\.1 s"):
        enhance_prompt("a", EnhanceConfig(url=endpoint.url, model="m", timeout_s=0.1))
    with pytest.raises(EnhanceError, match="cannot reach"):
        enhance_prompt("a", EnhanceConfig(url="http://127.0.0.1:1/v1", model="m"))


def test_the_whole_answer_has_a_deadline(endpoint: Endpoint) -> None:
    endpoint.trickle = True
    start = time.monotonic()
    with pytest.raises(EnhanceError, match=r"did not answer in 0\.3 s"):
        enhance_prompt("a", EnhanceConfig(url=endpoint.url, model="m", timeout_s=0.3))
    assert time.monotonic() - start < 10  # it would go on for a minute


def test_the_key_goes_where_its_owner_says(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has_key(seed: int, **who: Any) -> bool:
        config = EnhanceConfig(url=f"{endpoint.url}?a=b", model="m", **who)
        enhance_prompt("a", config, seed=seed)
        path, headers, _ = endpoint.asked[-1]
        assert path == "/v1/chat/completions?a=b"
        return "Authorization" in headers

    assert has_key(1)
    assert not has_key(2, named_by_file=True)
    monkeypatch.setenv("LTX2RT_ENHANCE_URL", endpoint.url)
    assert has_key(3, named_by_file=True)
    monkeypatch.setenv("LTX2RT_ENHANCE_URL", "https://keys.example/v1")
    assert not has_key(4)
    monkeypatch.setenv("LTX2RT_ENHANCE_URL", "keys")
    with pytest.raises(OptionError, match="LTX2RT_ENHANCE_URL is not"):
        has_key(5)


def test_prompts_in_the_cache_are_the_users_alone(endpoint: Endpoint, tmp_path: Path) -> None:
    enhance_prompt("a", EnhanceConfig(url=endpoint.url, model="m"))
    (kept,) = (tmp_path / "cache/enhanced").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_clean_keeps_plain_text() -> None:
    assert clean("* – Élan: “x”\N{NO-BREAK SPACE}5′−3’ ") == "Élan: \"x\" 5'-3'"
    assert clean(" ...12 ") == ""


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"url": "file:///etc/passwd"}, "is not an http or https address"),
        ({"url": "http://"}, "is not an http or https address"),
        ({"url": "http://[::1/v1"}, "is not an http or https address"),
        ({"url": "http://h:99999/v1"}, "is not an http or https address"),
        ({"url": "https://h/v1\n"}, "is not an http or https address"),
        ({"url": "http://h/v1"}, r"plain http to another machine.*\(insecure\)"),
        ({"url": "https://me:PASSW0RD@h/v1"}, "holds a user name or password"),
        ({"model": None, "url": "https://h"}, "url names an endpoint; give its model too"),
        ({"model": "/absent"}, "is not the folder of a local model"),
        ({"url": "http://h", "timeout_s": float("nan")}, "timeout_s=nan is not in"),
    ],
)
def test_who_enhances_is_checked(values: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said) as error:
        EnhanceConfig(**{"model": "m", **values})
    assert "PASSW0RD" not in str(error.value)


def test_flags_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    common = ["generate", "b", "--prompt", "a", "-o", "x.mp4"]
    for flags, said in (
        (["--enhance-model", "m"], "--enhance-model needs --enhance-prompt"),
        (["--enhance-prompt", "--enhance-url", "https://h"], "names an endpoint; give its model"),
        (
            ["--enhance-prompt", "--enhance-model", "m", "--enhance-url", "ftp://x",
             "--embeddings", "e"],
            "cannot be used with --embeddings",
        ),
    ):  # fmt: skip
        assert main([*common, *flags]) == 2
        assert said in capsys.readouterr().err


def test_errors_are_of_the_family() -> None:
    assert issubclass(EnhanceError, Ltx2rtError)
