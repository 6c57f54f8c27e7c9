"""Nothing wrong is written, nothing private leaks, nobody's code runs: on the demo bundle."""

from __future__ import annotations

import json
import os
import shutil
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

import ltx2rt
from ltx2rt.backends.onnxruntime import OrtEngine
from ltx2rt.bundle.manifest import read_manifest, write_manifest
from ltx2rt.components.transformer import Transformer
from ltx2rt.components.upsampler import LatentUpsampler
from ltx2rt.components.video_decoder import VideoDecoder
from ltx2rt.engine import EngineSpec, TensorSpec
from ltx2rt.errors import CheckpointError, EngineError, OptionError
from ltx2rt.media.reader import read_tags
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.results.record import NO_PATH, RECORD_TAG, record_in
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from ltx2rt.weights.safetensors_writer import write_safetensors
from tests.parity.command_line import SMALL, expect_user_error, unchanged
from tests.parity.command_line import ltx2rt as run

COMMON = ("--prompt", "a lake", *SMALL, "--quiet")
REQUEST = {"prompt": "a", "height": 64, "width": 64, "num_frames": 9}


def spoil(call: Callable[..., Any], value: float, *, after: int = 0) -> Callable[..., Any]:
    """The same function, one number of whose results is `value` from the call `after` on."""
    calls = []

    def spoiled(*arguments: Any, **options: Any) -> Any:
        result = call(*arguments, **options)
        calls.append(1)
        if len(calls) <= after:
            return result
        first = next(a for a in result if a is not None) if not hasattr(result, "flat") else result
        first.flat[0] = value
        return result

    return spoiled


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_stage_that_gives_no_numbers_stops_at_its_step(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(Transformer, "__call__", spoil(Transformer.__call__, value, after=2))
    with unchanged(tmp_path):
        outcome = run("generate", demo_bundle, *COMMON, "-o", tmp_path / "x.mp4")
    expect_user_error(outcome, "stage_1, step 3 of 8: the video latent", "--allow-nan")


def test_the_curious_may_look_at_it(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # --quiet would hide the warning
    monkeypatch.setattr(Transformer, "__call__", spoil(Transformer.__call__, np.nan))
    with pytest.warns(UserWarning, match="are NaN; written as"):
        outcome = run(
            "generate", demo_bundle, *COMMON[:-1], "-o", tmp_path / "x.mp4", "--allow-nan"
        )
    assert outcome.code == 0, outcome.err


def test_upsampler_and_decoder_are_watched_too(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("generate", demo_bundle, *COMMON, "-o", tmp_path / "x.mp4", "--stream")
    with monkeypatch.context() as patch, unchanged(tmp_path):
        patch.setattr(LatentUpsampler, "__call__", spoil(LatentUpsampler.__call__, np.nan))
        expect_user_error(run(*command), "upsample: the video latent came out as NaN")
    decode = VideoDecoder.decode

    def black(*arguments: Any) -> Any:
        return (chunk * np.float32(np.nan) for chunk in decode(*arguments))

    monkeypatch.setattr(VideoDecoder, "decode", black)
    with unchanged(tmp_path):
        expect_user_error(run(*command), "decode video: frames came out as NaN")


def private(folder: Path) -> Path:
    """An image whose path is nobody's business."""
    (folder / "secret").mkdir()
    image = folder / "secret/me.png"
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(image)
    return image


def test_what_files_say_of_their_origin(demo_bundle: Path, tmp_path: Path) -> None:
    image = private(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    command = ("generate", demo_bundle, *COMMON, "--image", image, "-o")
    assert run(*command, out / "r.mp4", "--frames", out / "f").code == 0
    text = read_tags(out / "r.mp4")[RECORD_TAG]
    assert str(tmp_path) not in text
    assert '"../secret/me.png"' in text
    for name in ("r.mp4", "f/frame_00000.png"):
        assert record_in(out / name).request.config.images[0].path == image
    moved = shutil.copytree(tmp_path / "secret", tmp_path / "elsewhere/secret")
    (tmp_path / "elsewhere/out").mkdir()
    shutil.copy(out / "r.mp4", tmp_path / "elsewhere/out/r.mp4")
    there = record_in(tmp_path / "elsewhere/out/r.mp4")
    assert there.request.config.images[0].path == moved / "me.png"

    assert run(*command, out / "n.mp4", "--record-paths", "none").code == 0
    assert "me.png" not in str(read_tags(out / "n.mp4"))
    assert record_in(out / "n.mp4").request.config.images[0].path.name == NO_PATH
    assert run(*command, out / "a.mp4", "--record-paths", "absolute").code == 0
    assert str(image) in read_tags(out / "a.mp4")[RECORD_TAG]
    latents = out / "q.safetensors"
    assert run(*command, out / "q.mp4", "--save-latents", latents, "--no-record").code == 0
    assert not {"prompt", "seed", RECORD_TAG} & read_tags(out / "q.mp4").keys()
    assert not {"prompt", "seed", RECORD_TAG} & SafetensorsFile(latents).metadata.keys()


def test_names_that_are_not_utf_8(demo_bundle: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff"))
    folder.mkdir()
    image = private(folder)
    command = ("generate", demo_bundle, *COMMON, "--image", image, "-o", folder / "x.mp4")
    assert run(*command).code == 0
    assert record_in(folder / "x.mp4").request.config.images[0].path == image
    assert "made before" in run(*command, "--resume").out


def test_a_lora_that_overflows_writes_nothing(
    demo_bundle: Path, demo_model: dict[str, Path], tmp_path: Path
) -> None:
    name = "model.diffusion_model.transformer_blocks.0.attn1.to_q"
    rows, columns = SafetensorsFile(demo_model["checkpoint"])[f"{name}.weight"].shape
    ones = {
        f"{name.removeprefix('model.')}.lora_A.weight": np.ones((1, columns), np.float32),
        f"{name.removeprefix('model.')}.lora_B.weight": np.ones((rows, 1), np.float32),
    }
    write_safetensors(tmp_path / "l.safetensors", ones)
    with unchanged(tmp_path):
        outcome = run(
            "generate", demo_bundle, *COMMON, "--lora", f"{tmp_path / 'l.safetensors'}:1e308",
            "-o", tmp_path / "x.mp4",
        )  # fmt: skip
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("ltx2rt: error: ")
    assert "Warning" not in outcome.err


def test_threads_take_turns_and_a_closed_pipeline_says_so(demo_bundle: Path) -> None:
    bundle, found = ltx2rt.open_bundle(demo_bundle), {}

    def work(seed: int) -> None:
        clip = pipe(seed=seed, **REQUEST)
        found[seed] = (clip.latents["stage_2.video"], np.concatenate(list(clip.frames)))

    with DistilledPipeline(bundle, ltx2rt.RuntimeConfig(threads=1)) as pipe:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == [1, 2]
        alone = pipe(seed=1, **REQUEST)
        np.testing.assert_array_equal(found[1][0], alone.latents["stage_2.video"])
        np.testing.assert_array_equal(found[1][1], np.concatenate(list(alone.frames)))
        dropped = iter(pipe(seed=2, **REQUEST).frames)
        next(dropped)
        other = threading.Thread(target=dropped.close)  # type: ignore[attr-defined]
        other.start()
        other.join()
    with pytest.raises(OptionError, match="this pipeline is closed"):
        pipe(seed=1, **REQUEST)
    with pytest.raises(OptionError, match="this pipeline is closed"):
        next(iter(alone.frames))


def test_a_job_names_no_code_and_replaces_nothing_elsewhere(
    demo_bundle: Path, tmp_path: Path
) -> None:
    job = tmp_path / "job/j.json"
    job.parent.mkdir()
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")

    def ask(**keys: Any) -> Any:
        job.write_text(json.dumps({**REQUEST, "output": "x.mp4", **keys}))
        with unchanged(tmp_path):
            return run("generate", demo_bundle, "--job", job, "--threads", 1)

    for key in ("plugin_modules", "engine_host_code", "enhance_insecure"):
        expect_user_error(ask(**{key: ["x"]}), f"{key} is for the command line alone")
    for key in ("save_latents", "save_embeddings"):
        expect_user_error(ask(**{key: str(mine)}), "it would replace", "on the command line")
    expect_user_error(ask(image="\ud800.png"), "is not a path")
    expect_user_error(ask(prompt="\ud800"), "not valid UTF-8")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--num-frames", 8_000_001), "GiB; this machine has"),
        (("--height", 64_000, "--width", 64_000), "GiB; this machine has"),
        (("--weights-dir", "nope"), "the folder of weights 'nope' is not there"),
        (("--weights-dir", os.devnull), "or is no folder"),
        (("--work-dir", ""), "expected a path"),
        (("--tiling", "0x0"), "--tiling=0x0 splits nothing; say none"),
        (("--seed", "1,2,1"), "--seed names 1 twice"),
        (("--threads", 99_999_999), "is more than 1024"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(
    demo_bundle: Path, tmp_path: Path, flags: tuple[Any, ...], said: str
) -> None:
    size = [v for k, v in zip(SMALL[::2], SMALL[1::2], strict=True) for v in (k, v)]
    for flag in flags[::2]:
        if flag in size:
            place = size.index(flag)
            del size[place : place + 2]
    with unchanged(tmp_path):
        outcome = run(
            "generate", demo_bundle, "--prompt", "a", *size, *flags, "-o", tmp_path / "x.mp4"
        )
    expect_user_error(outcome, said)


def test_streams_and_closed_files(demo_bundle: Path, tmp_path: Path) -> None:
    outcome = run("generate", demo_bundle, *COMMON, "--stream", "--frames", tmp_path / "f")
    expect_user_error(outcome, "--stream is for a video file")


def test_pipes_and_devices_are_no_input(demo_bundle: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    os.mkfifo(tmp_path / "pipe.safetensors")
    shutil.copytree(demo_bundle, tmp_path / "b")
    (tmp_path / "b/manifest.json").unlink()
    (tmp_path / "b/manifest.json").symlink_to("/dev/zero")
    common = ("generate", demo_bundle, *COMMON, "-o", tmp_path / "x.mp4")
    for command in (
        ("generate", demo_bundle, "--job", pipe),
        (*common, "--lora", tmp_path / "pipe.safetensors"),
        (*common, "--image", tmp_path / "pipe.safetensors"),
        ("inspect", tmp_path / "pipe.safetensors"),
        ("generate", tmp_path / "b", *COMMON, "-o", tmp_path / "x.mp4"),
        ("build", "--checkpoint", tmp_path / "pipe.safetensors", "-o", tmp_path / "c"),
    ):
        expect_user_error(run(*command))
    outcome = run("generate", demo_bundle, "--prompt", f"@{pipe}", "-o", tmp_path / "x.mp4")
    assert outcome.code == 2
    assert "it is not a file but a pipe or device" in outcome.err


def test_a_toml_bomb_and_a_picture_bomb(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text(".".join(["a"] * 50_000) + " = 1")
    expect_user_error(run("generate", demo_bundle, "--job", tmp_path / "b.toml"), "more than 64000")
    Image.new("L", (1, 1)).save(tmp_path / "b.png")
    data = bytearray((tmp_path / "b.png").read_bytes())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "b.png").write_bytes(data)
    expect_user_error(run("generate", demo_bundle, "--job", tmp_path / "b.png"), "b.png")


def test_weights_that_changed_under_their_header(demo_bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(demo_bundle)
    weights = tmp_path / "weights"
    weights.mkdir()
    bundle = tmp_path / "b"
    shutil.copytree(demo_bundle, bundle)
    sources = []
    for number, source in enumerate(manifest.sources):
        path = Path(shutil.copy(demo_bundle / source.path, weights / f"{number}.safetensors"))
        changed = path.stat().st_mtime_ns
        sources.append(replace(source, path=str(path), modified_ns=changed))
    write_manifest(replace(manifest, sources=tuple(sources)), bundle)
    first = run("verify", bundle, "--weights", "--json")
    assert {w["state"] for w in first.json["weights"]} == {"noted"}
    assert {w["state"] for w in run("verify", bundle, "--weights", "--json").json["weights"]} == {
        "same"
    }
    assert "warning" not in first.err
    spoilt = Path(sources[0].path)
    data = bytearray(spoilt.read_bytes())
    data[-10:] = bytes(b ^ 1 for b in data[-10:])
    spoilt.write_bytes(data)
    os.utime(spoilt, ns=(0, 1))
    with pytest.warns(UserWarning, match=f"{spoilt} was written to since the build"):
        found = run("verify", bundle, "--weights")
    assert found.code == 1
    assert f"changed     {spoilt}" in found.out


def test_weights_that_are_cut_off_after_opening(
    demo_model: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copy(demo_model["spatial_upsampler"], tmp_path / "w.safetensors"))
    file, maps = SafetensorsFile(path), MappedFiles()
    first, *_, last = sorted(file.values(), key=lambda e: e.offset)
    maps.raw(first)
    os.truncate(path, last.offset)
    with pytest.raises(CheckpointError, match="was cut off after it was opened"):
        maps.raw(last)


def test_a_graph_that_names_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4], [0.0] * 4)
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    place = weight.external_data.add()
    place.key, place.value = "location", "secret.bin"
    (tmp_path / "secret.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    spec = EngineSpec(
        "toy", (TensorSpec("x", "float32", (4,)),), (TensorSpec("y", "float32", (4,)),)
    )
    ones = np.ones(4, np.float32)
    engine = OrtEngine(model.SerializeToString(), spec, {"w": ones})  # as our graphs are loaded
    np.testing.assert_array_equal(engine({"x": ones})["y"], 2 * ones)
    with pytest.raises(EngineError, match="names a file for its data"):
        OrtEngine(model.SerializeToString(), spec, {})
