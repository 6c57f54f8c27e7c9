"""`--pipeline ic-lora` on the demo bundle: what the LoRA's metadata and the flags do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.components.reference_conditioner import ReferenceFile
from ltx2rt.components.stage_trace import StageTrace
from ltx2rt.config import GenerationConfig, GuidanceConfig, RuntimeConfig
from ltx2rt.errors import OptionError
from ltx2rt.lora.files import Lora
from ltx2rt.media.reader import probe_video
from ltx2rt.media.sound import read_audio
from ltx2rt.media.writer import VideoWriter
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.pipelines.dub_it import DubItPipeline
from ltx2rt.pipelines.ic_lora import GuidedICLoraPipeline, ICLoraInputs, ICLoraPipeline
from ltx2rt.sampling.guidance import GuiderParams
from tests.parity.command_line import expect_user_error, instead, unchanged
from tests.parity.command_line import ltx2rt as run
from tests.parity.demo_loras import write_demo_lora
from tests.parity.media_files import sound_file, video_file

SIZE = ("--height", 128, "--width", 128, "--num-frames", 9, "--threads", 1, "--quiet")
ASK = ("generate", "--pipeline", "ic-lora", "--prompt", "a lake", "--seed", 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ic_lora")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Path:
    frames = np.random.default_rng(0).random((9, 96, 160, 3), np.float32)
    with VideoWriter(folder / "reference.mp4", 160, 96, 24) as writer:
        writer.write(frames)
    return folder / "reference.mp4"


@pytest.fixture(scope="module")
def pipe(demo_bundle: Path) -> Iterator[ICLoraPipeline]:
    runtime = RuntimeConfig(threads=1, residency="resident")
    with ICLoraPipeline(open_bundle(demo_bundle), runtime) as pipeline:
        yield pipeline


def lora(
    folder: Path, model: dict[str, Path], name: str, metadata: dict[str, str] | None = None
) -> Path:
    path = folder / f"{name}.safetensors"
    return path if path.exists() else write_demo_lora(path, model, 1, metadata)


@pytest.mark.parametrize(
    ("name", "metadata", "tokens", "end_s"),
    [
        # the clip has 2 latent frames of 2x2 cells in stage 1, and so has a plain reference
        ("detailer", {}, 8, 9 / 24),
        ("union", {"reference_downscale_factor": "2"}, 2, 9 / 24),
        ("depth", {"reference_spatial_scale_factor": "2"}, 2, 9 / 24),
        # frames 0, 1, 5 of the reference: its one latent frame is the first of the clip
        ("motion-track", {"reference_temporal_scale_factor": "4"}, 4, 1 / 24),
    ],
)
def test_metadata_of_the_lora_sets_the_size_of_its_references(
    pipe: ICLoraPipeline, demo_model: dict[str, Path], folder: Path, reference: Path,
    name: str, metadata: dict[str, str], tokens: int, end_s: float,
) -> None:  # fmt: skip
    path = lora(folder, demo_model, name, metadata)
    trace = StageTrace()
    pipe(
        prompt="a lake", height=128, width=128, num_frames=9,
        loras=(Lora(path=str(path), strength=1.0),),
        references=(ReferenceFile(path=reference, strength=0.75),),
        skip_stage_2=True,
        trace=trace,
    )  # fmt: skip
    positions = trace.tensors["stage_1.video.positions"][0, :, 8:]
    assert positions.shape == (3, tokens, 2)
    np.testing.assert_allclose(positions[1:].max(), 64)  # it covers the whole picture
    np.testing.assert_allclose(positions[0].max(), end_s, rtol=1e-6)
    np.testing.assert_array_equal(trace.tensors["stage_1.video.mask"][0, 8:], 0.25)
    assert "stage_1.video.attention_mask" not in trace.tensors


def test_guided(
    pipe: ICLoraPipeline, demo_bundle: Path, demo_model: dict[str, Path], folder: Path,
    reference: Path,
) -> None:  # fmt: skip
    """Without guidance, on the distilled levels, it is the other pipeline bit by bit; a negative
    prompt and LoRAs of stage 2 count.
    """
    loras = (Lora(path=str(lora(folder, demo_model, "detailer")), strength=1.0),)
    few = {"sigmas": (1.0, 0.5, 0.0), "stage_2_sigmas": (0.9, 0.0)}
    ask = GenerationConfig(prompt="a", height=128, width=128, num_frames=9, loras=loras, **few)
    inputs = ICLoraInputs(references=(ReferenceFile(path=reference),))
    want = pipe(ask, inputs=inputs)
    with GuidedICLoraPipeline(open_bundle(demo_bundle), pipe.runtime) as guided:
        same = guided(ask, inputs=inputs)
        for stage in ("stage_1.video", "stage_2.video", "stage_2.audio"):
            np.testing.assert_array_equal(same.latents[stage], want.latents[stage])
        other = guided(
            dataclasses.replace(ask, stage_2_loras=loras),
            GuidanceConfig(video=GuiderParams(cfg_scale=3.0)),
            inputs,
        )
        assert np.abs(other.latents["stage_1.video"] - want.latents["stage_1.video"]).max() > 1e-3
        assert other.record.stages["stage_2"]["loras"] == other.record.stages["stage_1"]["loras"]
        alone = dataclasses.replace(inputs, skip_stage_2=True)
        whole = guided(dataclasses.replace(ask, stage_2_sigmas=None), inputs=alone)
        assert whole.latents["stage_1.video"].shape[2:] == (2, 4, 4)
        assert (whole.height, whole.width) == (128, 128)


def test_identity_guidance(pipe: ICLoraPipeline, demo_bundle: Path, folder: Path) -> None:
    """The estimate of the sound is what the definition says of those with and without the voice."""
    voice = sound_file(folder / "voice.wav", 0.3)
    ask = GenerationConfig(prompt="a", height=64, width=64, num_frames=9, sigmas=(1.0, 0.0))
    found = {}
    for scale in (0.0, 2.5):
        trace = StageTrace()
        own = ICLoraInputs(reference_audio=voice, identity_guidance=scale, skip_stage_2=True)
        pipe(ask, inputs=own, trace=trace)
        found[scale] = trace.tensors
    with DistilledPipeline(open_bundle(demo_bundle), RuntimeConfig(threads=1)) as alone:
        trace = StageTrace()
        alone(dataclasses.replace(ask, stage_2_sigmas=(0.9, 0.0)), trace=trace)
    name, count = "stage_1.eval00.audio.denoised", 9
    with_voice, without = found[0.0][name][:, :count], trace.tensors[name][:, :count]
    assert np.abs(with_voice - without).max() > 1e-4
    want = with_voice + 2.5 * (with_voice - without)
    np.testing.assert_allclose(found[2.5][name][:, :count], want, atol=1e-5)
    picture = "stage_1.eval00.video.denoised"
    np.testing.assert_array_equal(found[2.5][picture], found[0.0][picture])


def test_attention_strength_and_mask(pipe: ICLoraPipeline, folder: Path, reference: Path) -> None:
    white_left = np.zeros((9, 128, 128, 3), np.uint8)
    white_left[:, :, :64] = 255
    with VideoWriter(folder / "mask.mp4", 128, 128, 24) as writer:
        writer.write(white_left)
    weights = []
    for mask in (None, folder / "mask.mp4"):
        trace = StageTrace()
        pipe(
            GenerationConfig(prompt="a lake", height=128, width=128, num_frames=9),
            inputs=ICLoraInputs(
                references=(ReferenceFile(path=reference),),
                attention_strength=0.5,
                attention_mask=mask,
                skip_stage_2=True,
            ),
            trace=trace,
        )
        weights.append(trace.tensors["stage_1.video.attention_mask"][0, 0, 8:])
    np.testing.assert_array_equal(weights[0], 0.5)
    # the columns of the 2x2 cells, twice over rows and latent frames; H.264 blurs the edge a little
    np.testing.assert_allclose(weights[1], np.tile([0.5, 0.0], 4), atol=0.02)


def test_a_clip_of_both_stages_and_one_of_the_first_alone(
    demo_bundle: Path, demo_model: dict[str, Path], folder: Path, reference: Path
) -> None:
    path = lora(folder, demo_model, "union", {"reference_downscale_factor": "2"})
    outcome = run(
        *ASK[:1], demo_bundle, *ASK[1:], *SIZE, "--reference", f"{reference}:0.9",
        "--lora", f"{path}:0.8", "-o", folder / "full.mp4", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.json["pipeline"] == "ic-lora"
    assert outcome.json["loras"] == f"{path}:0.8"
    info = probe_video(folder / "full.mp4")
    assert (info.width, info.height, info.num_frames) == (128, 128, 9)
    assert info.has_audio
    outcome = run(
        *ASK[:1], demo_bundle, *ASK[1:], *SIZE, "--reference", reference, "--skip-stage-2",
        "-o", folder / "half.mp4", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert (outcome.json["width"], outcome.json["height"]) == (64, 64)
    info = probe_video(folder / "half.mp4")
    assert (info.width, info.height, info.num_frames) == (64, 64, 9)


def test_a_voice_is_shown_as_dub_it_shows_it_and_kept_by_stage_2(
    pipe: ICLoraPipeline, demo_bundle: Path, demo_model: dict[str, Path], folder: Path
) -> None:
    clip = video_file(folder / "talk.mp4", 9, 96, 64)
    loras = (Lora(path=str(lora(folder, demo_model, "plain", {})), strength=1.0),)
    size = {"prompt": "a lake", "height": 128, "width": 128, "loras": loras, "seed": 3}
    got, want = StageTrace(), StageTrace()
    made = pipe(
        **size, num_frames=9, references=(ReferenceFile(path=clip),), reference_audio=clip,
        trace=got,
    )  # fmt: skip
    with DubItPipeline(open_bundle(demo_bundle), RuntimeConfig(threads=1)) as dub:
        dub(**size, reference_video=clip, trace=want)
    stage_1 = [name for name in want.tensors if name.startswith("stage_1.")]
    assert "stage_1.audio.positions" in stage_1
    for name in stage_1:  # its golden is dubit_23
        np.testing.assert_array_equal(got.tensors[name], want.tensors[name], err_msg=name)
    np.testing.assert_array_equal(made.latents["stage_2.audio"], made.latents["stage_1.audio"])
    np.testing.assert_array_equal(made.audio_latent, made.latents["stage_1.audio"])


def test_a_voice_alone_is_enough(
    demo_bundle: Path, demo_model: dict[str, Path], folder: Path
) -> None:
    path = lora(folder, demo_model, "plain", {})
    sounds = []
    for name, seconds in (("short", 0.3), ("long", 0.9)):
        voice = sound_file(folder / f"{name}.wav", seconds)
        target = folder / f"{name}.mp4"
        outcome = run(
            *ASK[:1], demo_bundle, *ASK[1:], *SIZE, "--reference-audio", voice, "--lora", path,
            "-o", target,
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        sounds.append(read_audio(target)[0])
    assert sounds[0].shape == sounds[1].shape  # the clip's length, not the voice's
    assert np.abs(sounds[0] - sounds[1]).max() > 1e-4


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([], ["needs at least one reference video (--reference) or a voice (--reference-audio)"]),
        (["--reference", "REFERENCE", "--identity-guidance", 2], ["means nothing without --ref"]),
        (["--reference-audio", "VOICE", "--identity-guidance", -1], ["=-1.0 is not 0 or more"]),
        (["--reference-audio", "absent.wav"], ["absent.wav", "no such file"]),
        (
            [
                "--reference-audio",
                "VOICE",
                "--attention-mask",
                "m.mp4",
                "--attention-strength",
                0.5,
            ],
            ["--attention-mask means nothing", "--attention-strength means nothing"],
        ),
        (["--reference", "absent.mp4"], ["absent.mp4", "no such file"]),
        (["--reference", "REFERENCE:1.5"], ["strength=1.5 of the reference"]),
        (["--reference", "REFERENCE", "--attention-strength", 2], ["--attention-strength=2.0"]),
        (
            ["--reference", "a.mp4", "--attention-mask", "b.mp4", "--lora", "LORA"],
            ["'a.mp4'", "'b.mp4'"],
        ),
        (["--reference", "REFERENCE", "--num-generated-keyframes", 1], ["has no use for"]),
        (
            ["--reference", "REFERENCE", "--skip-stage-2", "--stage-2-sampler", "euler"],
            ["--stage-2-sampler means nothing where stage 2 is skipped"],
        ),
        (["--reference", "REFERENCE", "--stage-2-lora", "x"], ["no use for --stage-2-lora"]),
        (["--reference", "REFERENCE", "--attention-mask", "absent"], ["absent", "no such file"]),
        (
            ["--reference", "LONG", "--attention-mask", "SHORT", "--num-frames", 25],
            ["short.mp4' for '", "12 frames does not divide into the 3 latent", "or an image"],
        ),
        (
            ["--reference", "REFERENCE", "--lora", "LORA", "--lora", "OTHER"],
            ["different spatial reference factors"],
        ),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_loaded(
    demo_bundle: Path, demo_model: dict[str, Path], folder: Path, reference: Path, tmp_path: Path,
    flags: list, parts: list[str],
) -> None:  # fmt: skip
    union = lora(folder, demo_model, "union", {"reference_downscale_factor": "2"})
    other = lora(folder, demo_model, "other", {"reference_downscale_factor": "3"})
    voice = sound_file(folder / "voice.wav", 0.3)
    long, short = (video_file(folder / f"{n}.mp4", k) for n, k in (("long", 17), ("short", 12)))
    names = {"REFERENCE": reference, "LORA": union, "OTHER": other, "VOICE": voice}
    names |= {"LONG": long, "SHORT": short}
    filled = [
        next((str(f).replace(k, str(v)) for k, v in names.items() if str(f).startswith(k)), f)
        for f in flags
    ]
    with unchanged(tmp_path):
        outcome = run(
            "generate",
            demo_bundle,
            *ASK[1:],
            *instead(*SIZE[:-1], *filled),
            "-o",
            tmp_path / "x.mp4",
        )
    expect_user_error(outcome, *parts)
    assert "references stage_1" not in outcome.err


def test_other_pipelines_take_no_references(demo_bundle: Path, tmp_path: Path) -> None:
    outcome = run(
        "generate", demo_bundle, "--prompt", "a", "--reference", "x.mp4", "-o", tmp_path / "x.mp4"
    )
    expect_user_error(outcome, "no use for --reference, which is for hdr-ic-lora and ic-lora")
    with pytest.raises(OptionError, match="it has no use for generated_keyframes"):
        ICLoraPipeline(open_bundle(demo_bundle))(
            prompt="a", generated_keyframes=2, references=(ReferenceFile(path=Path("x.mp4")),)
        )
