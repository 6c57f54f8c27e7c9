"""Automatic duration: the head's runtime class, and the frames that it leads to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ltx2rt.components.duration_head import DurationHead
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.media.reader import probe_video
from ltx2rt.media.sound import read_audio
from ltx2rt.pipelines.engines import Engines
from ltx2rt_export.modules.duration_head import duration_head
from tests.parity.command_line import Outcome, expect_user_error, unchanged
from tests.parity.command_line import ltx2rt as run
from tests.parity.golden import BACKENDS, Runner, golden_root, load_case

ROOT = golden_root() or Path("absent")


@pytest.mark.parametrize("backend", BACKENDS)
def test_head_of_both_contexts_and_of_the_audio_alone(backend: str) -> None:
    case = load_case(ROOT / "components" / "duration_head.safetensors")
    runner = Runner(ROOT, backend)
    config = runner.config(case.checkpoint).get("duration_head") or {}
    tensors = runner.tensors(case.checkpoint, "duration_head.")
    head = DurationHead(runner.engine(duration_head(config, tensors)))
    context = TextContext(case.inputs["video"], case.inputs["audio"])
    assert case.tolerance is not None
    for name, audio_only in (("both", False), ("audio", True)):
        np.testing.assert_allclose(
            head(context, audio_only=audio_only),
            case.outputs[name][0],
            rtol=case.tolerance.rtol,
            atol=case.tolerance.atol,
        )


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The demo bundle as if it held a duration head that finds 0.72 s right."""
    asked: list[bool] = []

    class Head:
        def __call__(self, context: TextContext, *, audio_only: bool = False) -> float:
            assert context.audio.shape[1] == 1024
            asked.append(audio_only)
            return 0.72  # 17.28 frames: 17

    monkeypatch.setattr(Engines, "duration_head", lambda self: Head())
    monkeypatch.setattr(
        "ltx2rt.bundle.bundle.Bundle.has",
        lambda self, *names: all(n == "duration_head" or n in self.manifest.components
                                 for n in names),
    )  # fmt: skip
    return asked


def generate(bundle: Path, target: Path, *flags: object) -> Outcome:
    return run(
        "generate", bundle, "--prompt", "a bell", "--threads", 1, "-o", target, "--json", *flags
    )


def test_frames_are_chosen_after_the_prompt(
    demo_bundle: Path, tmp_path: Path, predicted: list[bool]
) -> None:
    outcome = generate(
        demo_bundle, tmp_path / "a.mp4", "--height", 64, "--width", 64, "--auto-duration", 0.3, 0.8
    )
    assert outcome.code == 0, outcome.err
    assert predicted == [False]
    assert outcome.json["num_frames"] == 17
    assert "duration: 1/1" in outcome.err
    assert "17 frames" in outcome.err
    info = probe_video(tmp_path / "a.mp4")
    assert info.num_frames == 17
    assert info.metadata["num_frames"] == "17"


def test_sound_of_its_own_length(demo_bundle: Path, tmp_path: Path, predicted: list[bool]) -> None:
    outcome = generate(
        demo_bundle, tmp_path / "a.wav", "--pipeline", "text-to-audio", "--num-frames", "auto",
        "--num-inference-steps", 1,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert predicted == [True]
    assert outcome.json["num_frames"] == 25  # at least a second
    wave, rate = read_audio(tmp_path / "a.wav")
    assert wave.shape[1] == (4 * 26 - 3) * rate // 100
    assert outcome.json["duration_s"] == pytest.approx(wave.shape[1] / rate)


def test_image_behind_the_predicted_end(
    demo_bundle: Path, tmp_path: Path, predicted: list[bool]
) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    size = ("--height", 64, "--width", 64)
    flags = (*size, "--num-frames", "auto", "--image")
    late = generate(demo_bundle, tmp_path / "a.mp4", *flags, f"{tmp_path / 'x.png'}@480")
    assert "placed at frame 480; the clip has at most 480 frames" in late.err
    assert predicted == []
    late = generate(demo_bundle, tmp_path / "a.mp4", *flags, f"{tmp_path / 'x.png'}@40")
    assert "placed at frame 40; the clip has 25 frames" in late.err
    assert (late.code, predicted) == (2, [False])


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (
            ("--num-frames", "auto"),
            ["needs a duration head", "bundle of LTX-2.3", "--duration-head"],
        ),
        (("--auto-duration", 3, 2), ["from 3 to 2 seconds is not a range"]),
        (("--auto-duration", 1, 2, "--num-frames", 9), ["give one of them"]),
        (
            ("--pipeline", "keyframe", "--num-frames", "auto"),
            ["keyframe pipeline", "it cannot choose its duration"],
        ),
    ],
)
def test_refused_before_anything_is_loaded(
    flags: tuple[object, ...],
    parts: list[str],
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ltx2rt.bundle.loader.Loader.engine", pytest.fail)
    with unchanged(tmp_path):
        expect_user_error(generate(demo_bundle, tmp_path / "x.mp4", *flags), *parts)
