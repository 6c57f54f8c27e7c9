"""Every command of the README does what it says, in a fresh environment.

Official checkpoints are not at hand: the demo model's files stand in their places under their
names, and clips are small; nothing else is changed.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import Home
from tests.e2e.readme import README, blocks, commands, words
from tests.parity.demo_loras import write_demo_lora
from tests.parity.media_files import sound_file, video_file

QUIET = ("--threads", 1, "--quiet")
SMALL = ("--height", 64, "--width", 64, "--num-frames", 9, *QUIET)

#: a command that needs what the demo model, a distilled LTX-2.3, has not is refused, in these words
REFUSED = {
    "--pipeline dfr": "keyframe",
    "--auto-duration": "duration",
    "--upscale both": "temporal",
}

#: pipelines whose clip has the size of what is given
SIZED = ("retake", "retake-two-stage", "hdr-ic-lora", "upscale")


def playable(path: Path, *, video: bool = True) -> int:
    """Decode a file to its end; the number of frames of its picture, or of blocks of its sound."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0] if video else container.streams.audio[0]
        return sum(1 for _ in container.decode(stream))


def test_make_demo(made: Home) -> None:
    assert playable(made.folder / "demo.mp4") == 49
    assert playable(made.folder / "demo.mp4", video=False) > 0


@pytest.fixture(scope="module")
def desk(made: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A folder with the files that the README's commands name."""
    home = made.inside(tmp_path_factory.mktemp("desk") / "desk")
    files = demo_files(home)
    for name, file in model_files().items():
        (home.folder / file).symlink_to(files[name])
    (build,) = commands("ltx2rt build --checkpoint")
    home.run(*words(build.replace("--for rtx4090 ", "")), "--quiet")  # no card is here
    write_media(home)
    return home


def model_files() -> dict[str, str]:
    """The files that the README builds, by the name of the option that takes them."""
    (line,) = commands("ltx2rt build --checkpoint")
    build = words(line.replace("--for rtx4090 ", ""))
    flags = zip(build[2:-2:2], build[3:-2:2], strict=True)
    return {flag[2:].replace("-", "_"): file.rstrip("/") for flag, file in flags}


def demo_files(home: Home) -> dict[str, str]:
    """The demo model's files, by the name of the option that takes them."""
    code = (
        "import json, sys; from pathlib import Path; from ltx2rt_export.demo import "
        "write_demo_model as w; f = w(Path(sys.argv[1])); "
        "print(json.dumps({k: str(v) for k, v in f.items()}))"
    )
    done = home.run(home.commands / "python", "-c", code, home.folder / "model")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def write_media(home: Home) -> None:
    """Pictures, sounds, videos and LoRAs under the names that the commands use."""
    folder = home.folder
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("first", "last", "a", "b", "face", "where"):
        Image.fromarray(values).save(folder / f"{name}.png")
    for name in ("talk.wav", "voice.wav"):
        sound_file(folder / name, 1.0)
    for name in ("in.mp4", "4k.mp4", "depth.mp4", "silent.mp4", "next.mp4"):
        video_file(folder / name, 49, sound=name != "silent.mp4")
    model = {name: folder / file for name, file in model_files().items()}
    metadata = {"reference_downscale_factor": "1", "hdr_transform": "logc3"}
    for name in ("L", "depth", "id", "dub", "hdr", "a", "b"):
        write_demo_lora(folder / f"{name}.safetensors", model, 0, metadata)


def test_the_quickstart(desk: Home) -> None:
    (generate,) = (words(c) for c in commands("ltx2rt generate ltx23.bundle"))
    desk.run(*generate, *SMALL)
    assert playable(desk.folder / "out.mp4") == 9
    (program,) = blocks("python")
    for name, value in (("height", 64), ("width", 64), ("num_frames", 9)):
        program, count = re.subn(rf"{name}=\d+", f"{name}={value}", program)
        assert count == 1
    (desk.folder / "out.mp4").unlink()
    desk.run(desk.commands / "python", "-c", program)
    assert playable(desk.folder / "out.mp4") == 9


def test_reports(desk: Home) -> None:
    listed = desk.run("ltx2rt", "pipelines").stdout.decode()
    assert "distilled" in listed
    assert "text-to-audio" in listed
    for path in ("ltx23.bundle", "L.safetensors", "ltx-2.3-22b-distilled-1.1.safetensors"):
        assert desk.run("ltx2rt", "inspect", path).stdout
    assert "onnxruntime" in desk.run("ltx2rt", "doctor", "ltx23.bundle").stdout.decode()
    assert desk.run("ltx2rt", "lora", "info", "L.safetensors").stdout
    assert desk.run("ltx2rt", "cache").stdout
    # the demo installs no PyTorch: what compares with it says how to get it
    said = desk.run("ltx2rt", "verify", "ltx23.bundle", code=2).stderr.decode()
    assert re.search(r"needs the package torch, .*pip install -e '.*\[export\]'", said)


def test_merging_loras(desk: Home) -> None:
    (merge,) = re.findall(r"`(ltx2rt lora merge a\.[^`]*)`", README)
    desk.run(*words(merge))
    assert (desk.folder / "ab.safetensors").exists()


GENERATE = commands("ltx2rt generate B")


def test_the_readme_was_read() -> None:
    assert len(GENERATE) >= 15
    assert {c.split()[3] for c in GENERATE} >= {"--pipeline", "--prompt", "--job"}


@pytest.mark.parametrize(
    "command", GENERATE, ids=lambda c: c.removeprefix("ltx2rt generate B ")[:60]
)
def test_generate(desk: Home, command: str) -> None:
    """In the README's order: a later command may take what an earlier one made."""
    if "EXR" in command.upper() and not (desk.folder / "still.exr").exists():
        write_exr(desk)
    shutil.rmtree(desk.folder / "out_exr", ignore_errors=True)  # frames of another command
    arguments = ["ltx23.bundle" if a == "B" else a for a in words(command)]
    pipeline = arguments[arguments.index("--pipeline") + 1] if "--pipeline" in arguments else ""
    small: list[object] = [*SMALL[:4], "--num-frames", 121 if "@120" in command else 9, *QUIET]
    if "--num-frames" in arguments:
        arguments[arguments.index("--num-frames") + 1] = "65"
        small = [*SMALL[:4], *QUIET]
    if "--outpaint" in arguments:
        arguments[arguments.index("--outpaint") + 1] = "128x128"
    if "--size" in arguments:  # sizes by name are too large for a test: what they are named for is
        arguments[arguments.index("--size") + 1] = "64x64"
        if "--stage-2-tile" in arguments:
            arguments[arguments.index("--stage-2-tile") + 1] = "64x64"
        small = [*small[4:]]
    if pipeline in SIZED or "--job" in arguments:
        small = [*QUIET]
    elif pipeline == "text-to-audio":
        small = ["--num-frames", 9, *QUIET]
    elif "--auto-duration" in arguments:
        small = [*SMALL[:4], *QUIET]
    refusal = next((said for part, said in REFUSED.items() if part in command), None)
    done = desk.run(*arguments, *small, code=0 if refusal is None else 2)
    target = arguments[arguments.index("-o") + 1]
    if refusal is not None:
        assert refusal in done.stderr.decode()
    elif target == "-":
        assert done.stdout[4:8] == b"ftyp"
    else:
        assert playable(desk.folder / target, video=not target.endswith(".wav")) > 0


def write_exr(home: Home) -> None:
    """`take_exr/` and `still.exr`, after the extra is installed that reads them."""
    project = Home(home.commands.parents[1], home.commands, home.variables)
    project.run(
        home.commands / "python", "-m", "pip", "install", "--quiet", "--no-build-isolation",
        "-c", "constraints.txt", "-e", ".[build,exr]",
    )  # fmt: skip
    home.run(
        home.commands / "python", "-c",
        "import numpy as np, OpenEXR, os; os.mkdir('take_exr')\n"
        "light = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)\n"
        "for n in [f'take_exr/frame_{i:05}.exr' for i in range(49)] + ['still.exr']:\n"
        "    OpenEXR.File({}, {'RGB': light.astype('float16')}).write(n)",
    )  # fmt: skip
