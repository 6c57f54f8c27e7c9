"""`ltx2rt generate` with everything that can be wrong: one clear message, exit 2, nothing left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltx2rt.media.files import OutputFile
from ltx2rt.media.writer import VideoWriter
from ltx2rt.progress import Progress
from tests.parity.command_line import (
    SMALL,
    edited_bundle,
    expect_user_error,
    instead,
    ltx2rt,
    unchanged,
)

PROMPT = ("--prompt", "a lake", "--quiet")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An output folder in which nothing may change."""
    path = tmp_path / "out"
    path.mkdir()
    (path / "kept.mp4").write_bytes(b"an older clip")
    with unchanged(path):
        yield path


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--height", 101, "--width", 64), ("height=101", "100, 102")),
        (("--width", 73, "--height", 9), ("width=73", "72, 74", "height=9", "2 problems")),
        (("--num-frames", 16), ("--num-frames=16", "9, 17")),
        (("--num-frames", 0), ("--num-frames=0", "positive")),
        (("--frame-rate", "nan"), ("--frame-rate=nan is not in [1, 240]",)),
        (("--seed", 2**64), ("does not fit 64 bits",)),
        (("--threads", -1), ("--threads=-1 is negative",)),
        (("--prompt", "  "), ("the prompt is empty",)),
        (("--image", "none.png"), ("none.png", "there is no such file")),
        (("--image", __file__), (__file__, "not an image that can be read")),
        (("--image", "x.png@9"), ("placed at frame 9; the clip has 9 frames",)),
    ],
)
def test_requests(
    flags: tuple[object, ...], said: tuple[str, ...], demo_bundle: Path, folder: Path
) -> None:
    asked = instead(*PROMPT, *SMALL, *flags)
    outcome = ltx2rt("generate", demo_bundle, *asked, "-o", folder / "kept.mp4", "--json")
    expect_user_error(outcome, *said)
    assert outcome.err.count("cannot generate") < 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("-o", "missing/x.mp4"), "does not exist; create it first"),
        (("-o", "x.avi"), "the extension '.avi' is not allowed"),
        (("-o", "x"), "the extension '' is not allowed"),
        (("-o", "kept.mp4/x.mp4"), "does not exist"),
        (("-o", "x.mkv", "--fragmented"), "a fragmented file is .mp4 or .mov"),
        (("-o", "x.mp4", "--audio-output", "x.ogg"), "'.ogg' is not allowed"),
        (("-o", "x.mp4", "--audio-output", "missing/x.wav"), "does not exist"),
        (("-o", "x.mp4", "--save-latents", "missing/x.safetensors"), "does not exist"),
        (("-o", "x.mp4", "--save-latents", "../out"), "not a regular file"),
        (("-o", "x.mp4", "--save-latents", "./x.mp4"), "x.mp4' is named for 2 outputs"),
        (("-o", "x.mp4", "--save-embeddings", "x.mp4"), "x.mp4' is named for 2 outputs"),
        (("-o", "x.mp4", "--work-dir", "kept.mp4"), "'kept.mp4': it is a file; name a directory"),
    ],
)
def test_outputs_are_checked_before_any_work(
    flags: tuple[str, ...],
    said: str,
    demo_bundle: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("ltx2rt.cli.generate.open_bundle", pytest.fail)
    expect_user_error(ltx2rt("generate", demo_bundle, *PROMPT, *SMALL, *flags), said)


def test_folder_without_permission(
    demo_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("ltx2rt.media.files.tempfile.TemporaryFile", refuse)
    outcome = ltx2rt("generate", demo_bundle, *PROMPT, *SMALL, "-o", folder / "x.mp4")
    expect_user_error(outcome, f"'{folder}' is not writable (Permission denied)")


@pytest.mark.parametrize("flag", ["--fragmented", "--json"])
def test_disk_full_while_the_clip_is_written(
    flag: str, demo_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = OutputFile.__init__

    def small_disk(self: OutputFile, *args: Any, **options: Any) -> None:
        opened(self, *args, **options)
        file, left = self._file, [2000]

        def write(data: memoryview) -> int:
            left[0] -= len(data)
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return file.write(data)

        self._file = SimpleNamespace(  # type: ignore[assignment]
            write=write, seek=file.seek, tell=file.tell, close=file.close
        )

    monkeypatch.setattr(OutputFile, "__init__", small_disk)
    outcome = ltx2rt("generate", demo_bundle, *PROMPT, *SMALL, flag, "-o", folder / "x.mp4")
    expect_user_error(outcome, "the disk is full", folder / "x.mp4")


def test_disk_full_while_latents_are_saved(
    demo_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ltx2rt.weights.safetensors_writer.shutil.disk_usage", lambda _: SimpleNamespace(free=100)
    )
    latents = folder / "x.safetensors"
    outcome = ltx2rt(
        "generate", demo_bundle, *PROMPT, *SMALL, "-o", folder / "x.mp4", "--save-latents", latents
    )
    expect_user_error(outcome, f"cannot write {latents}", "No space left")


@pytest.mark.parametrize(
    ("stage", "step"), [("prompt", 0), ("stage_1", 2), ("decode audio", 0), ("decode video", 1)]
)
def test_interrupted_at_a_step(
    stage: str, step: int, demo_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress of the video decoder comes from its own thread."""

    def printer(**_: bool) -> Callable[[Progress], None]:
        def report(progress: Progress) -> None:
            if (progress.stage, progress.step) == (stage, step):
                raise KeyboardInterrupt

        return report

    monkeypatch.setattr("ltx2rt.cli.generate.ProgressPrinter", printer)
    outcome = ltx2rt("generate", demo_bundle, *PROMPT, *SMALL, "-o", folder / "x.mp4")
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.strip() == "ltx2rt: interrupted; partial output was removed."


def test_a_machine_that_holds_no_layer_is_refused_before_any_work(
    demo_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltx2rt.pipelines.preparation.machine_bytes", lambda: 1000)
    with unchanged(folder):
        outcome = ltx2rt("generate", demo_bundle, *PROMPT, *SMALL, "-o", folder / "x.mp4")
    expect_user_error(outcome, "one layer of the transformer", "--precision int8-wo")


@pytest.mark.parametrize("flag", ["--fragmented", "--json"])
def test_interrupted_while_frames_are_written(
    flag: str, demo_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoding thread ends before its engine is closed."""
    write = VideoWriter.write

    def interrupt(self: VideoWriter, chunk: Any) -> None:
        write(self, chunk)
        raise KeyboardInterrupt

    monkeypatch.setattr(VideoWriter, "write", interrupt)
    outcome = ltx2rt("generate", demo_bundle, *PROMPT, *SMALL, flag, "-o", folder / "x.mp4")
    assert (outcome.code, outcome.out) == (130, "")
    assert "Traceback" not in outcome.err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_real_interrupt(demo_bundle: Path, folder: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable, "-m", "ltx2rt.cli", "generate", demo_bundle, "--prompt", "a",
            "--height", "512", "--width", "512", "--num-frames", "97", "--threads", "1",
            "-o", folder / "x.mp4",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("stage_1"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "ltx2rt: interrupted; partial output was removed."
    assert "Traceback" not in err


def test_bundle_without_a_part_that_the_pipeline_needs(
    demo_bundle: Path, tmp_path: Path, folder: Path
) -> None:
    def remove(manifest: dict[str, Any]) -> None:
        del manifest["components"]["spatial_upsampler"], manifest["components"]["vocoder"]

    bundle = edited_bundle(demo_bundle, tmp_path / "less", remove)
    outcome = ltx2rt("generate", bundle, *PROMPT, *SMALL, "-o", folder / "x.mp4")
    expect_user_error(outcome, "the distilled pipeline needs spatial_upsampler, vocoder")


def test_image_without_an_encoder(demo_bundle: Path, tmp_path: Path, folder: Path) -> None:
    def remove(manifest: dict[str, Any]) -> None:
        del manifest["components"]["video_encoder"]

    bundle = edited_bundle(demo_bundle, tmp_path / "less", remove)
    image = tmp_path / "x.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image)
    common = ("generate", bundle, *PROMPT, *SMALL, "-o", folder / "x.mp4")
    expect_user_error(ltx2rt(*common, "--image", image), "holds no video_encoder")
