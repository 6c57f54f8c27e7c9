"""Names on the model hub: read from its cache, fetched only by `ltx2rt pull`, from a hub that runs
here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from ltx2rt.errors import CheckpointError, OptionError
from ltx2rt.hub.catalog import SETS
from ltx2rt.hub.fetch import Planned, check_disk
from ltx2rt.hub.reference import HubReference, local_path, parse_reference
from ltx2rt_export.checkpoint import open_model
from tests.unit.hub_server import COMMITS, Hub, serving

OWNER = "Lightricks/LTX-2.3"
CHECKPOINT = "ltx-2.3-22b-distilled-1.1.safetensors"
UPSAMPLER = "ltx-2.3-spatial-upscaler-x2-1.1.safetensors"
GEMMA = "google/gemma-3-12b-it-qat-q4_0-unquantized"

#: runs commands in one process, each with its status and what it printed
RUNNER = """
import contextlib, io, json, sys
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 2**16  # what is kept of a broken download
from ltx2rt.cli.__main__ import main
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    print(json.dumps([status, out.getvalue(), err.getvalue()]))
"""


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("a/b", HubReference("a/b")),
        ("a/b:c/d.safetensors", HubReference("a/b", None, "c/d.safetensors")),
        ("a/b.c@v1:d.safetensors", HubReference("a/b.c", "v1", "d.safetensors")),
        ("a/b@refs/pr/1", HubReference("a/b", "refs/pr/1")),
        ("models/x.safetensors", None), ("x.safetensors", None), ("/a/b", None), ("./a", None),
        ("../a/b", None), ("a/b/c", None), ("a/b:../c", None), ("C:\\a\\b", None), ("a/b:", None),
    ],
)  # fmt: skip
def test_names_are_told_from_paths(text: str, reference: HubReference | None) -> None:
    assert parse_reference(text) == reference
    if reference:
        assert str(reference) == text


def test_a_path_that_is_there_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a/b").mkdir(parents=True)
    assert local_path("a/b") == Path("a/b")
    assert local_path("models/missing.safetensors") == Path("models/missing.safetensors")


def test_every_set_makes_a_command() -> None:
    for row in SETS.values():
        for precision in row.precisions:
            flags = [file.flag for file in row.files(precision)]
            assert len(set(flags)) == len(flags)
            assert {"--checkpoint", "--spatial-upsampler"} < set(flags)
            assert "--gemma" in flags or "--text-encoder" in flags
            assert all(file.bytes > 10**6 and str(file.reference) == file.name
                       for file in row.files(precision))  # fmt: skip


def test_a_full_disk_is_found_before_anything_is_fetched() -> None:
    huge = Planned(HubReference("a/b"), "c", ("d",), 10**18, 10**18)
    with pytest.raises(OptionError, match=r"1000000000\.0 GB are to be fetched .*HF_HOME"):
        check_disk([huge])
    check_disk([Planned(HubReference("a/b"), "c", ("d",), 10**18, 0)])


@pytest.fixture
def hub(demo_model: dict[str, Path]) -> Iterator[Hub]:
    gemma = demo_model["gemma"]
    models = {
        OWNER: {
            CHECKPOINT: demo_model["checkpoint"].read_bytes(),
            UPSAMPLER: demo_model["spatial_upsampler"].read_bytes(),
            "clip.mp4": b"not fetched with the model",
        },
        GEMMA: {p.name: p.read_bytes() for p in gemma.iterdir() if p.is_file()},
        "gated/model": {},
    }
    with serving(Hub(models, gated={"gated/model"}, broken={CHECKPOINT})) as server:
        yield server


def run(hub: Hub, home: Path, *commands: list[str], **more: str) -> list[tuple[int, str, str]]:
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1", "no_proxy": "127.0.0.1", **more,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(commands)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.skipif(find_spec("onnx") is None, reason="a build needs onnx")
def test_a_set_is_fetched_by_name_and_used_by_name(hub: Hub, tmp_path: Path) -> None:
    names = [f"{OWNER}:{CHECKPOINT}", GEMMA, f"{OWNER}:{UPSAMPLER}"]
    unfetched, planned, pulled, again, shown = run(
        hub, tmp_path,
        ["inspect", names[0]],
        ["pull", "ltx-2.3-distilled", "--dry-run", "--json"],
        ["pull", "ltx-2.3-distilled"],
        ["pull", *names, "--json"],
        ["inspect", f"{OWNER}@main:{CHECKPOINT}", "--json"],
    )  # fmt: skip
    assert unfetched[0] == 2
    assert f"`ltx2rt pull {names[0]}`" in unfetched[2]
    rows = json.loads(planned[1])
    assert [row["name"] for row in rows] == names
    contents = hub.models
    assert rows[0]["bytes"] == rows[0]["missing_bytes"] == len(contents[OWNER][CHECKPOINT])
    assert rows[1]["bytes"] == sum(map(len, contents[GEMMA].values()))

    assert pulled[0] == 0
    assert f"ltx2rt build --checkpoint {names[0]} --gemma {GEMMA} --spatial" in pulled[1]
    assert "fetch (bytes)" in pulled[2]
    assert "clip.mp4" not in " ".join(hub.asked)
    halves = [line for line in hub.asked if line.startswith("GET") and "bytes=" in line]
    assert len(halves) == 1  # the broken connection was taken up where it ended
    assert CHECKPOINT in halves[0]
    fetched = json.loads(again[1])
    assert [row["missing_bytes"] for row in fetched] == [0, 0, 0]
    paths = [Path(row["path"]) for row in fetched]
    assert paths[0].read_bytes() == contents[OWNER][CHECKPOINT]
    assert paths[1].name == COMMITS["main"]
    assert json.loads(shown[1])["kind"] == "checkpoint"
    assert open_model(paths[0], paths[1], paths[2]).version.generation == "LTX-2.3"

    hub.asked.clear()
    offline = run(
        hub, tmp_path,
        ["inspect", names[0], "--json"],
        ["build", "--checkpoint", names[0], "--gemma", GEMMA, "--spatial-upsampler", names[2],
         "--lora", "x/y:z.safetensors:0.5", "-o", str(tmp_path / "b")],
        ["pull", f"{OWNER}:other.safetensors"],
        HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert not hub.asked
    assert [status for status, _, _ in offline] == [0, 2, 2]
    assert "ltx2rt pull x/y:z.safetensors" in offline[1][2]
    assert "HF_HUB_OFFLINE is set" in offline[2][2]


def test_what_cannot_be_fetched_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    refused = {
        "gated/model:a.safetensors": "asks for its licence to be accepted: open http",
        "gated/model": "gated/model asks for its licence",
        "nobody/nothing": "there is no model nobody/nothing on http",
        f"{OWNER}@v9:{CHECKPOINT}": f"{OWNER} has no revision 'v9'",
        f"{OWNER}:{CHECKPOINT[:-12]}-2.safetensors": f"; did you mean '{CHECKPOINT}'?; it has ",
        "no name": "is neither a set (there are ",
        f"{OWNER}:vae": "is an empty folder on the hub",
        "ltx-2.3-destilled": "did you mean 'ltx-2.3-distilled'?",
    }
    results = run(
        hub, tmp_path,
        *(["pull", name] for name in refused),
        ["pull", "ltx-2.3-dev", "--precision", "int2"],
        ["pull"],
    )  # fmt: skip
    for (name, message), (status, _, said) in zip(refused.items(), results, strict=False):
        assert status == 2, name
        assert message in said
        assert said.count("\n") == 1
    assert "it has bf16, fp8" in results[-2][2]
    assert results[-1][0] == 0
    assert "LTX-2 Community License" in results[-1][1]
    assert not any(line.startswith("GET /Lightricks") for line in hub.asked)
    hub.url = "http://127.0.0.1:9"
    ((status, _, said),) = run(hub, tmp_path, ["pull", f"{OWNER}:{CHECKPOINT}"])
    assert status == 2
    assert "does not answer" in said.splitlines()[-1]  # after what the hub's package says


def test_the_library_takes_names_for_loras_and_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    from ltx2rt.components.embeddings import check_embeddings
    from ltx2rt.lora.files import open_lora

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nonexistent")
    for opens in (open_lora, lambda name: check_embeddings(name, {}, "")):
        with pytest.raises(CheckpointError, match=r"ltx2rt pull nobody/lora:x.safetensors"):
            opens("nobody/lora:x.safetensors")
