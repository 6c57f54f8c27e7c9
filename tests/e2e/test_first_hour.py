"""The three ways in, from the pages alone: each in an environment of its own outside the checkout,
with every command taken from the pages.

What stands in for what is not at hand: official files are sparse ones of official names and sizes
(a video), the demo's bundle stands for a built one (embed, serve), and clips are small. With
`LTX2RT_E2E_CACHE=DIR` the engines of an earlier run are used again.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.e2e.conftest import Home, copy_of_the_project, environment
from tests.e2e.pages import page
from tests.e2e.test_readme import playable

#: a program runs as it is, with clips of the demo's size where it names none
SMALL_CLIPS = """
import runpy, sys
from ltx2rt.config import GenerationConfig
from ltx2rt.pipelines.catalog import PIPELINES, catalog_class
fields = GenerationConfig.__init__.__kwdefaults__
fields.update(height=64, width=64, num_frames=9)
for kind in map(catalog_class, PIPELINES):
    kind.default_size = kind.default_size and (64, 64)
runpy.run_path(sys.argv[1], run_name="__main__")
"""
PATIENCE_S = 600


def newcomer(folder: Path) -> Home:
    """A checkout, and an empty environment beside it that installs the versions of the pins."""
    checkout = copy_of_the_project(folder / "ltx2rt")
    python = Path(sys.base_prefix) / "bin/python3"
    subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
    commands = folder / "venv/bin"
    more = {
        "PIP_CONSTRAINT": str(checkout / "constraints.txt"),
        "VIRTUAL_ENV": str(folder / "venv"),
        "LTX2RT_CACHE": os.environ.get("LTX2RT_E2E_CACHE", str(folder / "cache")),
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "no_proxy": "127.0.0.1,localhost",
    }
    return Home(checkout, commands, environment(commands) | more)


def follow(home: Home, command: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    """Run a line of a page."""
    return home.run(*shlex.split(command), code=code)


def test_a_video(tmp_path: Path) -> None:
    """README and `docs/first_video.md`, up to what needs a card."""
    home = newcomer(tmp_path)
    first = page("docs/first_video.md")
    create = page("README.md", "Create on an RTX card")
    follow(home, first.command("pip install -e '.[build,gpu,hub]'"))
    said = follow(home, page("docs/install.md").command("ltx2rt doctor")).stdout.decode()
    assert "verdict: this machine can" in said
    with official_files(home, tmp_path / "files") as url:
        online = replace(home, variables={**home.variables, "HF_ENDPOINT": url})
        pulled = follow(online, first.command("ltx2rt pull")).stdout.decode()
    build = first.command("ltx2rt build --checkpoint")
    assert build.partition(" --for")[0] in pulled, "pull prints another build than its page"

    refused = follow(home, build, code=2).stderr.decode()  # no card is here
    assert "For a card that is not here give its name (--for rtx4090)" in refused
    by_path = create.command("ltx2rt build")
    planned = follow(home, f"{by_path} --dry-run").stdout.decode().splitlines()
    assert len(planned) == 7
    assert "larger with layers uploaded" in planned[1]
    rows = first.rows("build")
    assert len(rows) == 5
    for what, takes, *_ in rows:
        (flags,) = re.findall(r"`(--for [^`]+)`", what)
        plan = follow(home, f"{build.replace('--for this', flags)} --dry-run").stdout.decode()
        assert f"denoise {takes}" in tenths(plan), what
    data_centre = page("docs/first_video.md", "H100 (80 GB)").command("ltx2rt build")
    line = data_centre.replace("...", build.partition("build ")[2].partition(" --for")[0])
    assert "H100 (80 GiB)" in follow(home, f"{line} --dry-run").stdout.decode()

    follow(home, build.replace("--for this", "--for rtx4090"))
    bundle = home.folder / "ltx23.bundle"
    assert json.loads((bundle / "manifest.json").read_text())["backend"] == "tensorrt-rtx"
    assert len(list(bundle.rglob("*.engine"))) >= 13
    refused = follow(home, first.command("ltx2rt generate ltx23"), code=2).stderr.decode()
    assert "needs an NVIDIA GPU" in refused
    assert follow(home, "ltx2rt doctor ltx23.bundle", code=1).stdout


def tenths(plan: str) -> str:
    """A plan with its sizes as pages write them."""
    return re.sub(r"(\d+\.\d\d) GiB", lambda m: f"{float(m[1]):.1f} GiB", plan)


@contextmanager
def official_files(home: Home, folder: Path) -> Iterator[str]:
    """Sparse files of the official names in the hub's cache and beside the checkout; inside, a hub
    that says that they are current.
    """
    from benchmarks.sparse_model import write_sparse_model
    from tests.unit.hub_server import COMMITS, Hub, serving

    made = write_sparse_model(folder, "2.3")
    named = shlex.split(page("docs/first_video.md").command("ltx2rt build --checkpoint"))
    local = shlex.split(page("README.md", "Create on an RTX card").command("ltx2rt build"))
    models: dict[str, dict[str, bytes]] = {}
    for role in ("checkpoint", "gemma", "spatial_upsampler"):
        flag = f"--{role.replace('_', '-')}"
        repo, _, name = named[named.index(flag) + 1].partition(":")
        cache = Path(home.variables["HF_HOME"]) / "hub" / f"models--{repo.replace('/', '--')}"
        snapshot = cache / "snapshots" / COMMITS["main"]
        snapshot.mkdir(parents=True, exist_ok=True)
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs/main").write_text(COMMITS["main"])
        files = {name: made[role]} if name else {p.name: p for p in made[role].iterdir()}
        for file, place in files.items():
            (snapshot / file).symlink_to(place)
            models.setdefault(repo, {})[file] = b"whose bytes nobody asks for"
        (home.folder / local[local.index(flag) + 1].rstrip("/")).symlink_to(made[role])
    with serving(Hub(models)) as server:
        yield server.url


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """With a bundle of the demo, as the page of examples says, and the files that scripts name."""
    home = newcomer(tmp_path_factory.mktemp("embed"))
    embed = page("README.md", "Embed in Python, or take the ONNX graphs")
    follow(home, embed.command("pip install"))
    follow(home, embed.command("ltx2rt demo"))
    for name in ("ltx23.bundle", "B"):
        (home.folder / name).symlink_to("demo/demo.bundle")
    return home


def test_graphs_for_other_tools(embedder: Home) -> None:
    """Every command of `docs/onnx.md`, then what its table says to do with the files."""
    onnx = page("docs/onnx.md")
    commands = onnx.commands("ltx2rt graph")
    assert len(commands) == 3
    for command in commands:
        follow(embedder, command)
        assert (embedder.folder / shlex.split(command)[5]).stat().st_size > 1000
    tools = {row[0]: row[1] for row in onnx.rows("tool")}
    (infer,) = re.findall(r"`([^`]+)`", tools["ONNX Runtime"])
    (check,) = re.findall(r"`([^`]+)`", tools["onnx"])
    program = (
        "import numpy, onnx, onnxruntime\n"
        f"mel = numpy.zeros((1, 2, 480, 64), numpy.float32)\nprint({infer}[0].shape)\n{check}\n"
    )
    shape = embedder.run(embedder.commands / "python", "-c", program).stdout.decode()
    assert shape.startswith("(1, 2, ")


def test_a_program_and_every_example(embedder: Home) -> None:
    """The README's program, then each script that the page of examples lists, in its order."""
    write_examples_media(embedder)
    (program,) = page("README.md").blocks("python")
    (embedder.folder / "readme.py").write_text(re.sub(r"=(1024|1536|121)\b", small, program))
    run_small(embedder, "readme.py")
    assert playable(embedder.folder / "out.mp4") == 9
    scripts = re.findall(r"^\| \[(\w+\.py)\]", page("examples/README.md").text, re.MULTILINE)
    assert set(scripts) == {p.name for p in (embedder.folder / "examples").glob("*.py")}
    for script in scripts:
        run_small(embedder, f"examples/{script}")
    for clip in embedder.folder.glob("*.mp4"):
        assert playable(clip) > 0


def small(match: re.Match[str]) -> str:
    return {"1024": "=64", "1536": "=64", "121": "=9"}[match[1]]


def run_small(home: Home, program: str) -> None:
    (home.folder / "small.py").write_text(SMALL_CLIPS)
    home.run(home.commands / "python", "small.py", program)


def write_examples_media(home: Home) -> None:
    from tests.parity.examples import write_media

    found = {
        "checkpoint": "*-distilled.safetensors",
        "gemma": "gemma-*",
        "spatial_upsampler": "*-spatial-*.safetensors",
    }
    write_media(home.folder, {k: only(home.folder / "demo/model", v) for k, v in found.items()})


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_a_server(embedder: Home) -> None:
    """README's server, the calls of `docs/serving.md` through curl, and our client."""
    block = page("README.md", "Serve")
    follow(embedder, block.command("pip install"))
    shutil.copy(embedder.folder / "docs/serve.png", embedder.folder / "first.png")
    serving = page("docs/serving.md")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = embedder.folder / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [*shlex.split(block.command("ltx2rt serve")), "--port", str(port)],
            cwd=embedder.folder, env=dict(embedder.variables), stdout=out, stderr=out,
        )  # fmt: skip
        try:
            wait_for(port, server, log)
            for command in serving.commands("curl"):
                follow(embedder, smaller(command, port))
            assert playable(embedder.folder / "lake.mp4") == 9
            (embedder.folder / "lake.mp4").unlink()
            client = page("docs/serving.md", "`ltx2rt client`").commands("ltx2rt client --prompt")
            command = smaller(client[0], port)
            follow(embedder, f"{command} --url http://127.0.0.1:{port}")
            assert playable(embedder.folder / "lake.mp4") == 9
            with urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE_S) as shown:
                assert b"<form" in shown.read()
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(PATIENCE_S)
    assert server.returncode == 0, log.read_text()


def smaller(command: str, port: int) -> str:
    """At the demo's size, at this server."""
    swaps = {
        "localhost:8000": f"127.0.0.1:{port}", "768x512": "64x64", "seconds=5": "seconds=0.4",
        "num_frames=121": "num_frames=9", "--width 768": "--width 64",
        "--height 512": "--height 64", "--seconds 5": "--seconds 0.4",
    }  # fmt: skip
    for long, short in swaps.items():
        command = command.replace(long, short)
    return command


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Until a worker answers."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            with urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=PATIENCE_S):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())
