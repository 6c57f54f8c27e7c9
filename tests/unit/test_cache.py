"""The cache folder: what it holds, what is cleared, and what killed builds left in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ltx2rt.bundle.cache import KINDS
from ltx2rt.cli.__main__ import main
from ltx2rt_export.engines.cache import EngineCache

DAYS_OLD = {
    "inputs/0a1b.png": (6, 1.0),
    "engines/a.engine": (100, 9.0), "engines/a.engine.json": (10, 9.0),
    "engines/b.engine": (1000, 0.0), "engines/b.engine.json": (10, 0.0),
    "engines/c.onnx": (7, 2.0), "engines/c.onnx.json": (3, 2.0),
    "kernels/a-card.bin": (50, 8.0),
    "enhanced/d.json": (4, 0.0), "colours/e.json": (8, 0.0), "times/f.json": (2, 0.0),
}  # fmt: skip
OTHERS = ("engines/notes.txt", "mine.engine")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with files of every kind, some of them days old, and the user's own."""
    root = tmp_path / "cache"
    for name, (size, days) in {**DAYS_OLD, **dict.fromkeys(OTHERS, (5, 99.0))}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        when = time.time() - days * 86400 - 60
        os.utime(path, (when, when))
    monkeypatch.setenv("LTX2RT_CACHE", str(root))
    return root


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_what_it_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = report(capsys, "cache")
    assert shown == {
        "folder": str(folder),
        "bytes": 1200,
        "kinds": {
            "engines": {"files": 4, "bytes": 1120},
            "graphs": {"files": 2, "bytes": 10},
            "kernels": {"files": 1, "bytes": 50},
            "prompts": {"files": 1, "bytes": 4},
            "colours": {"files": 1, "bytes": 8},
            "times": {"files": 1, "bytes": 2},
            "inputs": {"files": 1, "bytes": 6},
        },
    }
    assert report(capsys, "doctor")["cache"] == shown
    assert main(["doctor"]) == 0
    each = ", ".join(f"{kind} 0.0 MiB" for kind in KINDS)
    line = f"cache {folder}: {each}"
    assert f"{line}; `ltx2rt cache clear` empties it" in capsys.readouterr().out
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"{line}\n"


def test_clear(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = report(capsys, "cache", "clear", "--older-than", 7)
    kinds = dict.fromkeys(KINDS, 0)
    assert old["removed"] == {**kinds, "engines": 2, "kernels": 1}
    gone = {"engines/a.engine", "engines/a.engine.json", "kernels/a-card.bin"}
    assert files(folder) == ({*DAYS_OLD} - gone) | {*OTHERS}
    assert main(["cache", "clear", "--cache-dir", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("removed 8 files, 0.0 MiB\n")
    assert files(folder) == {*OTHERS}
    assert report(capsys, "cache", "clear")["bytes"] == 0


def test_an_empty_cache_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "none"))
    assert report(capsys, "cache", "clear")["bytes"] == 0
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--older-than", "3"], "ltx2rt cache clear --older-than DAYS"),
        (["clear", "--older-than", "-1"], "argument --older-than: '-1' is not a number of days"),
        (["clear", "--older-than", "week"], "argument --older-than: 'week' is not a number of"),
        (["clear", "--cache-dir", "/none/such"], "there is no cache folder /none/such"),
        (["empty"], "invalid choice: 'empty'"),
    ],
)
def test_bad_requests(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if said.startswith(("argument", "invalid")):
        with pytest.raises(SystemExit, match="2"):
            main(["cache", *arguments])
    else:
        assert main(["cache", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert files(folder) == {*DAYS_OLD, *OTHERS}


def test_a_cache_that_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "file"))
    assert main(["cache"]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err
    assert main(["doctor"]) == 0
    assert "cache: none; LTX2RT_CACHE=" in capsys.readouterr().out


def test_killed_builds_leave_nothing_for_long(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their work folders go with the next build; one that is in use stays."""
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from ltx2rt_export.engines.cache import EngineCache\n"
        f"with EngineCache(Path({str(folder)!r})).work() as work:\n"
        "    (work / 'engine').write_bytes(b'half')\n    print(work, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    build = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert build.stdout is not None
        work = Path(build.stdout.readline().strip())
        EngineCache(folder)
        assert (work / "engine").read_bytes() == b"half"
        assert main(["cache", "clear"]) == 2
        assert f"a build is using the cache {folder}; wait" in capsys.readouterr().err
        assert files(folder) > {*DAYS_OLD}
        build.send_signal(signal.SIGKILL)
        build.wait()
        assert work.exists()
        EngineCache(folder)
        assert files(folder) == {*DAYS_OLD, *OTHERS}  # neither the folder nor its lock
    finally:
        build.kill()
        build.communicate()
