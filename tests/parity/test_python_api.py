"""The Python API as programs use it: examples of docstrings, inputs in memory, asyncio."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import runpy
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ltx2rt
from ltx2rt.pipelines.base import Pipeline
from ltx2rt.results.clip_times import read_times
from tests.parity.examples import FRAMES, RATE, SIDE, keep_sessions, use_demo_sizes, write_media

#: names whose examples need what tests have not: a card, a model of the released size
NOT_RUN = {"build"}


@pytest.fixture(scope="module")
def folder(
    demo_model: dict[str, Path], demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Files with the names that examples use."""
    made = tmp_path_factory.mktemp("examples")
    write_media(made, demo_model)
    (made / "ltx23.bundle").symlink_to(demo_bundle)
    return made


@pytest.fixture(autouse=True)
def at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LTX2RT_CACHE", str(folder / "cache"))
    use_demo_sizes(monkeypatch)
    keep_sessions(monkeypatch)


@pytest.fixture(scope="module")
def pipe(demo_bundle: Path) -> Iterator[ltx2rt.DistilledPipeline]:
    bundle = ltx2rt.open_bundle(demo_bundle)
    runtime = ltx2rt.RuntimeConfig(residency="resident", threads=1)
    with ltx2rt.DistilledPipeline(bundle, runtime) as opened:
        yield opened


@pytest.fixture(scope="module")
def clip(pipe: ltx2rt.DistilledPipeline) -> ltx2rt.Clip:
    return pipe(prompt="a lake", height=SIDE, width=SIDE, num_frames=FRAMES)


def documented() -> dict[str, str]:
    """Public name, or method of one -> what its docstring shows."""
    found: dict[str, str] = {}
    for name in ltx2rt.__all__:
        value = getattr(ltx2rt, name)
        places = {name: value}
        if inspect.isclass(value):
            own = {m: inspect.unwrap(v) for m, v in vars(value).items() if callable(v)}
            own |= {m: v.fget for m, v in vars(value).items() if isinstance(v, property)}
            places |= {f"{name}.{m}": v for m, v in own.items()}
        for place, thing in places.items():
            blocks = re.findall(r"```python\n(.*?)```", inspect.getdoc(thing) or "", re.DOTALL)
            if blocks:
                found[place] = "\n".join(blocks)
    for method in ("__call__", "generate_many"):
        text = inspect.getdoc(getattr(Pipeline, method)) or ""
        found[f"Pipeline.{method}"] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    return found


EXAMPLES = documented()


def test_what_is_shown_is_found() -> None:
    assert len(EXAMPLES) > 20
    assert {"DistilledPipeline", "Clip.async_frames", "Clip.frames", "image_file"} <= set(EXAMPLES)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_of_docstrings_run(
    name: str, pipe: ltx2rt.DistilledPipeline, clip: ltx2rt.Clip
) -> None:
    code = compile(EXAMPLES[name], name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if name in NOT_RUN:
        return
    asyncio.run(run(code, pipe, clip))


SCRIPTS = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example_scripts_run(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each writes files that it names, which are clips or latents."""
    named = set(re.findall(r'"([\w-]+\.(?:mp4|mkv|safetensors))"', script.read_text()))
    mine = named - {"in.mp4", "style.safetensors"}
    for name in mine:
        Path(name).unlink(missing_ok=True)
    runpy.run_path(str(script), run_name="__main__")
    assert all(Path(name).stat().st_size > 500 for name in mine)
    assert mine or list(Path().glob("style-*.mp4"))


def test_every_example_is_listed() -> None:
    page = (SCRIPTS[0].parent / "README.md").read_text()
    listed = set(re.findall(r"^\| \[(\w+\.py)\]", page, re.MULTILINE))
    assert listed == {script.name for script in SCRIPTS}
    assert len(SCRIPTS) >= 10


async def run(code: CodeType, pipe: ltx2rt.DistilledPipeline, clip: ltx2rt.Clip) -> None:
    """With the names that stand for what went before."""

    async def send(data: bytes) -> None:
        assert data

    Image.new("RGB", (SIDE, SIDE)).save("photo.png")
    time = np.arange(24_000, dtype=np.float32) / 24_000
    names: dict[str, Any] = {
        "ltx2rt": ltx2rt, "Image": Image, "asyncio": asyncio, "send": send,
        "pipe": pipe, "bundle": pipe.source, "clip": clip,
        "frames": np.zeros((FRAMES * 2, SIDE, SIDE, 3), np.uint8), "samples": np.sin(880 * time),
    }  # fmt: skip
    result = eval(code, names)
    if inspect.isawaitable(result):
        await result


def test_images_in_memory_are_those_of_files(pipe: ltx2rt.DistilledPipeline) -> None:
    photo = Image.open("first.png")
    clips = [
        pipe(prompt="a lake", images=[given])
        for given in ("first.png", photo, np.asarray(photo), Path("first.png").read_bytes())
    ]
    latents = [clip.latents["stage_2.video"] for clip in clips]
    assert all(np.array_equal(latents[0], other) for other in latents[1:])
    assert not np.array_equal(latents[0], pipe(prompt="a lake").latents["stage_2.video"])
    kept = [clip.config.images[0].path for clip in clips[1:]]
    assert kept[0] == kept[1]  # of one content
    assert all(path.parent.name == "inputs" for path in kept)


def test_sound_and_video_in_memory_are_kept(pipe: ltx2rt.DistilledPipeline) -> None:
    random = np.random.default_rng(1)
    samples = random.uniform(-1, 1, (2, 20_000)).astype(np.float32)
    clip = pipe(prompt="a lake", audio=(samples, 48_000), num_frames=FRAMES)
    count = clip.audio.shape[1]
    assert count > 10_000
    assert np.array_equal(clip.audio, samples[:, :count])
    frames = random.integers(0, 255, (FRAMES, SIDE, SIDE, 3), np.uint8)
    path = ltx2rt.video_file([frames[:3], frames[3:]], RATE, (samples, 48_000))
    assert path == ltx2rt.video_file([frames[:3], frames[3:]], RATE, (samples, 48_000))
    assert path != ltx2rt.video_file(frames, 25)
    again = ltx2rt.video_file(path.read_bytes())
    assert again.suffix == ".mkv"
    from ltx2rt.media.reader import read_video_frames

    assert np.array_equal(np.stack(list(read_video_frames(again))), frames)
    assert ltx2rt.sound_file(Path("talk.wav").read_bytes()).suffix == ".wav"


def test_what_is_no_image_sound_or_video_is_a_sentence(pipe: ltx2rt.DistilledPipeline) -> None:
    for call, said in (
        (lambda: ltx2rt.image_file(b"<html>"), "these 6 bytes are no image"),
        (lambda: ltx2rt.image_file(np.zeros((2, 2), np.float32)), r"float32 \[2, 2\] .*uint8"),
        (lambda: ltx2rt.image_file(Image.new("F", (2, 2))), r"mode F .*convert\(\"RGB\"\)"),
        (lambda: ltx2rt.sound_file(b"<html>"), "these 6 bytes are no sound"),
        (lambda: ltx2rt.sound_file(np.zeros((2, 9), np.float32)), "need their rate in Hz"),
        (lambda: ltx2rt.sound_file(np.zeros((2, 9), np.int16), 48_000), r"int16 \[2, 9\]"),
        (lambda: ltx2rt.video_file([], 24), "no frames"),
        (lambda: ltx2rt.video_file(np.zeros((1, 2, 2, 3), np.uint8)), "pass frame_rate"),
        (lambda: ltx2rt.video_file(Path("talk.wav").read_bytes()), "hold no video"),
        (lambda: pipe(prompt="a", images="first.png"), "images is a str, not a list of images"),
        (lambda: pipe.generate_many(prompts="a lake"), "prompts='a lake' is not a list"),
        (lambda: pipe.generate_many([1], prompt="a", num_videos=2), "either seeds or a number"),
        (lambda: pipe.generate_many(prompt="a", num_videos=0), "num_videos=0"),
    ):
        with pytest.raises(ltx2rt.Ltx2rtError, match=said):
            call()  # type: ignore[no-untyped-call]


def test_several_prompts_and_seeds(pipe: ltx2rt.DistilledPipeline) -> None:
    many = pipe.generate_many(prompts=["rain", "snow"], num_videos=2, seed=5)
    assert [(c.config.prompt, c.config.seed) for c in many] == [
        ("rain", 5), ("rain", 6), ("snow", 5), ("snow", 6)
    ]  # fmt: skip
    config = ltx2rt.GenerationConfig(prompt="hail", seed=3)
    (clip,) = pipe.generate_many(config=config)
    assert (clip.config.prompt, clip.config.seed) == ("hail", 3)
    assert [c.config.seed for c in pipe.generate_many([9], config)] == [9]


def test_other_libraries_share_the_memory_of_a_clip(pipe: ltx2rt.DistilledPipeline) -> None:
    """Latents, frames and sound, by DLPack: torch writes where numpy reads."""
    clip = pipe(prompt="a lake", num_frames=FRAMES)
    for array in (*clip.latents.values(), next(iter(clip.frames)), clip.audio):
        tensor = torch.from_dlpack(array)
        np.testing.assert_array_equal(tensor.numpy(), array)
        first = (0,) * array.ndim
        tensor[first] = 7
        assert array[first] == 7


def test_frames_come_while_a_loop_goes_on(pipe: ltx2rt.DistilledPipeline) -> None:
    clip = pipe(prompt="a lake", num_frames=4 * FRAMES - 3, tiling="64x16:32x8")

    async def take() -> tuple[list[Any], int, int]:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        chunks = [chunk async for chunk in clip.async_frames()]
        counting.cancel()
        async with aclosing(clip.async_frames()) as some:  # type: ignore[type-var]
            first = len(await anext(some))
        return chunks, turns, first

    chunks, turns, first = asyncio.run(take())
    assert len(chunks) > 1
    assert first == len(chunks[0])
    assert turns > 10
    assert np.array_equal(np.concatenate(chunks), np.concatenate(list(clip.frames)))


def test_a_bundle_that_made_a_clip_knows_how_long_another_takes(
    pipe: ltx2rt.DistilledPipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path))
    monkeypatch.setattr(pipe, "_clips_made", 1)  # all is loaded
    asked = {"prompt": "a lake", "height": SIDE, "width": SIDE, "num_frames": FRAMES}
    reports: list[list[ltx2rt.Progress]] = [[], [], []]
    for seen in reports[:2]:
        clip = pipe(job=ltx2rt.Job(seen.append), **asked)
        assert all(report.clip_eta_s is None for report in reports[0])
        clip.save(tmp_path / "clip.mp4")
    (kept,) = read_times(next(tmp_path.glob("times/*.json")))
    assert kept.kind.startswith("another distilled ")
    assert {"prompt", "stage_1", "stage_2", "decode audio", "decode video"} <= kept.seconds.keys()
    assert all(report.clip_eta_s is not None for report in reports[1])
    assert reports[1][0].clip_eta_s > 0
    assert reports[1][-1].clip_eta_s == 0
    with ltx2rt.DistilledPipeline(pipe.source, pipe.runtime) as other:  # whose first clip loads
        monkeypatch.setattr(type(other), "generate", lambda self, run: run.job)
        job = other(job=ltx2rt.Job(), **asked)
    assert job._expected == {}
