"""`ltx2rt generate --pipeline text-to-audio` on the demo bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ltx2rt.media.reader import probe_audio, read_audio
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from tests.parity.command_line import Outcome, expect_user_error, instead, unchanged
from tests.parity.command_line import ltx2rt as run


def generate(bundle: Path, target: Path, *flags: object) -> Outcome:
    return run(
        "generate", bundle, "--pipeline", "text-to-audio", "--prompt", "a bell",
        "--num-inference-steps", 2, "--threads", 1, "-o", target,
        *instead("--num-frames", 9, *flags),
    )  # fmt: skip


def test_wav_and_flac_hold_the_same_sound(demo_bundle: Path, tmp_path: Path) -> None:
    saved = tmp_path / "a.safetensors"
    outcome = generate(
        demo_bundle, tmp_path / "a.flac", "--audio-output", tmp_path / "a.wav",
        "--save-latents", saved, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    report = outcome.json
    assert (report["num_frames"], report["frame_rate"]) == (9, 24.0)
    assert "width" not in report
    assert report["audio_modality_scale"] == "1.0"
    maps = MappedFiles()
    latents = {name: maps.raw(entry) for name, entry in SafetensorsFile(saved).items()}
    assert latents.keys() == {"stage_1.audio"}
    assert latents["stage_1.audio"].shape == (1, 8, 9, 16)
    wave, rate = read_audio(tmp_path / "a.wav")
    assert wave.shape == (2, (4 * 9 - 3) * rate // 100)
    assert wave.std() > 0
    assert report["duration_s"] == pytest.approx(wave.shape[1] / rate)
    assert report["audio_sampling_rate"] == rate
    same, same_rate = read_audio(tmp_path / "a.flac")
    assert same_rate == rate
    np.testing.assert_array_equal(same, wave)
    assert probe_audio(tmp_path / "a.flac").channels == 2


def test_any_number_of_frames_and_a_sentence(demo_bundle: Path, tmp_path: Path) -> None:
    outcome = generate(demo_bundle, tmp_path / "a.wav", "--num-frames", 12, "--quiet")
    assert outcome.code == 0, outcome.err
    wave, rate = read_audio(tmp_path / "a.wav")
    assert wave.shape[1] == (4 * 12 - 3) * rate // 100  # 0.5 s: 12 steps
    assert outcome.out.startswith(f"{tmp_path / 'a.wav'}: 0.45 s of sound at {rate} Hz, seed 10")


@pytest.mark.parametrize(
    ("target", "flags", "parts"),
    [
        ("x.mp4", (), ["'.mp4' is not allowed here", ".wav, .flac"]),
        ("x.wav", ("--height", 64, "--image", "x.png"), ["use for --height", "use for --image"]),
        ("x.wav", ("--tiling", "none"), ["has no use for --tiling"]),
        ("x.wav", ("--fragmented",), ["--stream is for video"]),
        ("x.wav", ("--num-frames", 0), ["--num-frames=0", "less than one step of sound"]),
        ("x.wav", ("--a2v-guidance-scale", 3), ["takes no guidance for the video"]),
        (
            "x.wav",
            ("--v2a-guidance-scale", 3),
            ["makes no video that could guide its sound: leave --v2a-guidance-scale=3", "at 1"],
        ),
    ],
)
def test_refused_before_anything_is_loaded(
    target: str,
    flags: tuple[object, ...],
    parts: list[str],
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ltx2rt.bundle.loader.Loader.engine", pytest.fail)
    with unchanged(tmp_path):
        expect_user_error(generate(demo_bundle, tmp_path / target, *flags), *parts)
