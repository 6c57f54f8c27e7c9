"""`--pipeline hdr-ic-lora` on the demo bundle: EXR frames and their preview."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.components.reference_conditioner import ReferenceFile
from ltx2rt.components.stage_trace import StageTrace
from ltx2rt.config import RuntimeConfig
from ltx2rt.latents.tiling import refine_tiles
from ltx2rt.lora.files import Lora
from ltx2rt.media.exr import iterate_exr_frames
from ltx2rt.media.hdr import TRANSFERS, HdrFormat, srgb_signal
from ltx2rt.media.reader import probe_video, read_video_frames
from ltx2rt.media.writer import VideoWriter
from ltx2rt.pipelines.hdr_ic_lora import OVERLAPS, TILES, HDRICLoraPipeline
from ltx2rt.progress import Job
from ltx2rt.results.hdr_clip import HdrClip
from tests.parity.command_line import expect_user_error, instead, unchanged
from tests.parity.command_line import ltx2rt as run
from tests.parity.demo_loras import write_demo_lora
from tests.parity.golden import golden_root

pytest.importorskip("OpenEXR")
ASK = ("--pipeline", "hdr-ic-lora", "--prompt", "a lake", "--seed", 5, "--threads", 1, "--quiet")
SIZE = ("--height", 72, "--width", 126, "--num-frames", 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hdr")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Path:
    frames = np.random.default_rng(0).random((9, 72, 126, 3), np.float32)
    with VideoWriter(folder / "reference.mp4", 126, 72, 24) as writer:
        writer.write(frames)
    return folder / "reference.mp4"


def lora(folder: Path, model: dict[str, Path], transform: str) -> Path:
    metadata = {"reference_downscale_factor": "2", "hdr_transform": transform}
    return write_demo_lora(folder / f"{transform}.safetensors", model, 1, metadata)


def test_tiles_and_canvas_are_the_official_ones() -> None:
    root = golden_root()
    assert root is not None
    tables = json.loads((root / "pipelines/tables.json").read_text())
    for name, want in tables.items():
        if name.startswith("hdr_stage2_tiles"):
            cells = [int(n) for n in name.split()[-1].split("x")]
            for tiles, intervals in zip(refine_tiles(cells, TILES, OVERLAPS), want, strict=True):
                got = [[t.source.start, t.source.stop] for t in tiles]
                assert got == [interval[:2] for interval in intervals]
    for asked, (width, height, *crop) in tables["align_resolution"].items():
        wanted = [int(n) for n in asked.split("x")]
        assert crop == wanted
        assert [n + -n % 64 for n in wanted] == [width, height]


@pytest.mark.parametrize("transform", ["true", "acescct"])
def test_exr_frames_and_preview_are_the_decoded_codes(
    demo_bundle: Path, demo_model: dict[str, Path], folder: Path, reference: Path, transform: str
) -> None:
    path = lora(folder, demo_model, transform)
    target = folder / f"{transform}.mp4"
    outcome = run(
        "generate", demo_bundle, *ASK, *SIZE, "--reference", reference, "--lora", path,
        "-o", target, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert (outcome.json["width"], outcome.json["height"]) == (126, 72)
    exr = np.stack(list(iterate_exr_frames(folder / f"{transform}_exr")))
    assert exr.shape == (9, 72, 126, 3)
    with HDRICLoraPipeline(open_bundle(demo_bundle), RuntimeConfig(threads=1)) as pipe:
        clip = pipe(
            prompt="a lake", seed=5, height=72, width=126, num_frames=9,
            loras=(Lora(path=str(path), strength=1.0),),
            references=(ReferenceFile(path=reference),),
        )  # fmt: skip
        assert isinstance(clip, HdrClip)
        codes = np.concatenate(list(clip.decoded_frames()))
    curve = "acescct" if transform == "acescct" else "logc3"
    light = HdrFormat(transfer=curve, files="rec709").linear_rec709(codes)
    np.testing.assert_array_equal(exr, light.astype(np.float16))
    assert light.max() > 1  # brighter than white
    info = probe_video(target)
    assert (info.width, info.height, info.num_frames, info.has_audio) == (126, 72, 9, False)
    preview = read_video_frames(target).astype(float) / 255
    # 4:2:0 of noise is coarse in colour, but the brightness is that of the light
    want = srgb_signal(light)
    assert np.corrcoef(preview.mean(-1).ravel(), want.mean(-1).ravel())[0, 1] > 0.9
    assert TRANSFERS.keys() == {"acescct", "logc3"}


def test_high_quality_keeps_every_second_frame(
    demo_bundle: Path, demo_model: dict[str, Path], folder: Path, reference: Path
) -> None:
    path = lora(folder, demo_model, "logc3")
    with HDRICLoraPipeline(open_bundle(demo_bundle), RuntimeConfig(threads=1)) as pipe:
        clip = pipe(
            prompt="a lake", height=128, width=128, num_frames=9,
            loras=(Lora(path=str(path), strength=1.0),),
            references=(ReferenceFile(path=reference),),
            high_quality=True,
        )  # fmt: skip
        assert clip.video_latent is not None
        assert clip.video_latent.shape[2] == 3  # 17 frames
        frames = np.concatenate(list(clip.decoded_frames()))
        every = np.concatenate(list(clip.decode_video(Job(), clip.video_latent, "auto")))
    np.testing.assert_array_equal(frames, every[::2])
    assert len(frames) == clip.num_frames == 9


def test_a_reference_that_ends_early_guides_only_the_tiles_under_it(
    demo_bundle: Path, demo_model: dict[str, Path], folder: Path
) -> None:
    with VideoWriter(folder / "short.mp4", 128, 128, 24) as writer:
        writer.write(np.full((1, 128, 128, 3), 0.5, np.float32))
    path = lora(folder, demo_model, "logc3")
    trace = StageTrace()
    with HDRICLoraPipeline(open_bundle(demo_bundle), RuntimeConfig(threads=1)) as pipe:
        pipe(
            prompt="a lake", height=128, width=128, num_frames=17,
            loras=(Lora(path=str(path), strength=1.0),),
            references=(ReferenceFile(path=folder / "short.mp4"),),
            trace=trace,
        )  # fmt: skip
    tokens = [trace.tensors[f"stage_2_tile_{i}.video.x0"].shape[1] for i in (1, 5)]
    # tiles of 2 latent frames of 3x3 cells; the first also shows the reference's only cell
    assert tokens == [18 + 1, 18]


def test_size_frames_and_rate_are_the_reference_s_unless_named(
    demo_bundle: Path, demo_model: dict[str, Path], folder: Path
) -> None:
    with VideoWriter(folder / "fast.mp4", 66, 70, 30) as writer:
        writer.write(np.random.default_rng(1).random((12, 70, 66, 3), np.float32))
    ask = ("--reference", folder / "fast.mp4", "--lora", lora(folder, demo_model, "logc3"))
    for flags, want in (
        ((), (66, 70, 9, 30.0)),
        (("--height", 72, "--frame-rate", 24), (66, 72, 9, 24.0)),
    ):
        target = folder / f"as-{len(flags)}.mp4"
        outcome = run("generate", demo_bundle, *ASK, *ask, *flags, "-o", target)
        assert outcome.code == 0, outcome.err
        info = probe_video(target)
        assert (info.width, info.height, info.num_frames, float(info.frame_rate)) == want
    given = {"prompt": "a", "references": (ReferenceFile(path=folder / "fast.mp4"),)}
    with HDRICLoraPipeline(open_bundle(demo_bundle)) as pipe:
        config = pipe.make_request(None, None, None, given).config
    assert (config.width, config.height, config.num_frames, config.frame_rate) == (66, 70, 9, 30.0)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([], ["it needs --reference"]),
        (["--reference", "absent.mp4", "--height", 70], ["absent.mp4", "no such file"]),
        (["--reference", "REFERENCE", "--height", 71], ["height=71 is not even"]),
        (["--reference", "REFERENCE", "--image", "x.png"], ["has no use for --image"]),
        (["--reference", "REFERENCE", "--lora", "OTHER"], ["the HDR curves pq"]),
        (
            ["--reference", "REFERENCE", "--lora", "LOGC3", "--lora", "ACESCCT"],
            ["the HDR curves acescct, logc3"],
        ),
    ],
)
def test_wrong_requests(
    demo_bundle: Path, demo_model: dict[str, Path], folder: Path, reference: Path, tmp_path: Path,
    flags: list, parts: list[str],
) -> None:  # fmt: skip
    files = {name.upper(): lora(folder, demo_model, name) for name in ("logc3", "acescct")}
    files |= {"OTHER": lora(folder, demo_model, "pq"), "REFERENCE": reference}
    with unchanged(tmp_path):
        outcome = run(
            "generate", demo_bundle, *ASK[:-1],
            *instead(*SIZE, *(files.get(f, f) for f in flags)), "-o", tmp_path / "x.mp4",
        )  # fmt: skip
    expect_user_error(outcome, *parts)
