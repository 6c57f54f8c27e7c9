"""`ltx2rt serve`, `triton` and `client` refuse what cannot work, before anything is opened."""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
from pathlib import Path

import pytest

from ltx2rt.cli import client, serve
from ltx2rt.cli.__main__ import main, parse
from ltx2rt.errors import OptionError
from ltx2rt.install import install_hint
from ltx2rt.service import log
from ltx2rt.service.http import server


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("ltx2rt: error:") == 1
    return err


def test_a_public_address_needs_keys(capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.7", "example.org"):
        assert "--keys FILE" in refused(capsys, "serve", "b", "--data", "d", "--host", host)
    assert all(map(serve._is_loopback, ("127.0.0.1", "::1", "[::1]", "localhost", "127.8.9.1")))


def test_what_is_missing_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "ltx2rt serve BUNDLE --data DIR" in refused(capsys, "serve")
    assert "--add-key needs --keys FILE" in refused(capsys, "serve", "--add-key", "ann")
    assert "is not a bundle" in refused(capsys, "triton", str(tmp_path), "-o", str(tmp_path / "r"))
    assert "-o FILE" in refused(capsys, "client", "--prompt", "x")
    here = ("client", "--prompt", "x", "-o", str(tmp_path / "x.mp4"))
    assert "not the address of a server" in refused(capsys, *here, "--url", "ftp://x")
    assert "exclude each other" in refused(capsys, *here, "--seconds", "1", "--num-frames", "9")
    assert "cannot read" in refused(capsys, *here, "--image", str(tmp_path / "none.png"))
    assert not [*tmp_path.iterdir()]
    for name in [n for n in sys.modules if n.startswith("ltx2rt.service.http.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.responses", None)
    said = refused(capsys, "serve", str(tmp_path), "--data", str(tmp_path / "d"))
    assert install_hint("serve") in said


def test_logs_are_json_for_machines_and_words_on_a_terminal() -> None:
    record = logging.makeLogRecord({"msg": "GET /x", "levelno": 20, "levelname": "INFO"})
    record.status = 404
    assert json.loads(log.JsonLines().format(record))["status"] == 404
    assert re.fullmatch(r"\d\d:\d\d:\d\d  GET /x  \(status 404\)", log.Words().format(record))
    record.levelno, record.levelname = 40, "ERROR"
    assert "  error: GET /x  (" in log.Words().format(record)


def test_an_address_that_cannot_be_used_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = server.Address(port=taken.getsockname()[1])
        with pytest.raises(OptionError, match="Address already in use; choose another --port"):
            server.serve(lambda *_: None, None, address)  # type: ignore[arg-type]


def test_a_key_is_shown_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert main(["serve", "--keys", str(keys), "--add-key", "ann"]) == 0
    assert capsys.readouterr().out.strip() not in keys.read_text()


def test_flags_of_the_client_are_a_request(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('pipeline = "one-stage"\n[config]\nseed = 3\nheight = 64\n')
    (tmp_path / "a.png").write_bytes(b"png")
    words = ["client", "--request", tmp_path / "r.toml", "--prompt", "a", "--seconds", "1"]
    words += ["--seed", "4", "--image", tmp_path / "a.png", "--lora", "x:0.5"]
    words += ["--negative-prompt", "b", "-o", "-"]
    found = client.request_of(parse([str(w) for w in words]))
    assert found == {
        "pipeline": "one-stage",
        "config": {
            "seed": 4,
            "height": 64,
            "prompt": "a",
            "num_frames": 25,
            "images": [{"path": "data:image/png;base64,cG5n"}],
            "loras": [{"path": "x", "strength": 0.5}],
        },
        "guidance": {"negative_prompt": "b"},
    }


def test_models_have_names(tmp_path: Path) -> None:
    bundles = [tmp_path / "a.bundle", tmp_path / "b"]
    assert [*serve.models_of(bundles, [])] == ["a", "b"]
    assert serve.models_of(bundles, ["x", "y"]) == {"x": bundles[0], "y": bundles[1]}
    for named, names, said in (
        (bundles, ["x"], "1 names of models are given for 2 bundles"),
        (bundles, ["x", "x"], "'x' cannot name a model"),
        ([bundles[0], bundles[0]], [], "'a' cannot name a model"),
        (bundles, ["x", "a/b"], "'a/b' cannot name a model"),
    ):
        with pytest.raises(OptionError, match=said):
            serve.models_of(named, names)


def test_settings_are_checked(tmp_path: Path) -> None:
    for flags, said in (
        (("--max-queue", "0"), "max_queue=0 is not above 0"),
        (("--max-steps", "0"), "max_steps=0 is less than 1"),
        (("--devices", "1,1"), "names none, or one twice"),
        (("--lora-dir", str(tmp_path / "none")), "is not a folder"),
    ):
        with pytest.raises(OptionError, match=said):
            serve.settings_of(parse(["serve", "b", "--data", "d", *flags]))
