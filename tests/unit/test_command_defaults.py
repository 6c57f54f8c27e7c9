"""What the command line fills in as the official commands do, and how references are tiled."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ltx2rt.cli import generate as generate_command
from ltx2rt.cli.requests import Asked, asked_of
from ltx2rt.components.reference_conditioner import ReferenceFile
from ltx2rt.config import GenerationConfig
from ltx2rt.latents.duration import AutoDuration
from ltx2rt.latents.shapes import VideoPixelShape
from ltx2rt.latents.tiling import AxisTiling, TilingConfig
from ltx2rt.names import DIFFUSION_DECODER, DURATION_HEAD
from ltx2rt.pipelines import hdr_ic_lora
from ltx2rt.pipelines.hdr_ic_lora import HDRICLoraInputs, HDRICLoraPipeline, encoder_tiling
from ltx2rt.pipelines.request import Request
from ltx2rt.results.record import Record


def asked(*flags: str, record: Record | None = None) -> Asked:
    parser = argparse.ArgumentParser()
    generate_command.add_arguments(parser)
    options = parser.parse_args(["b", "--prompt", "a", "-o", "x.mp4", *flags])
    return asked_of(generate_command.given_in(options), record)


def holding(*components: str) -> Any:
    return lambda *names: set(names) <= set(components)


def completed(found: Asked, *components: str) -> GenerationConfig:
    """What is asked of a bundle with these components."""
    pipe = object.__new__(found.pipeline)
    model = SimpleNamespace(stg_block=28)
    options = {"num_layers": 48}
    source = SimpleNamespace(has=holding(*components), model=model, options=lambda _: options)
    pipe.engines = SimpleNamespace(source=source)
    return found.for_pipeline(pipe).request.config


@pytest.mark.parametrize(
    ("flags", "frames", "said"),
    [
        ((), AutoDuration(), True),
        (("--pipeline", "one-stage"), AutoDuration(), True),
        (("--quiet",), AutoDuration(), False),
        (("--num-frames", "9"), 9, False),
        (("--num-frames", "auto"), AutoDuration(), False),
        (("--auto-duration", "2", "3"), AutoDuration(min_s=2, max_s=3), False),
        (("--pipeline", "keyframe", "--image", "x.png", "--distilled-lora", "y"), 121, False),
    ],
)
def test_a_duration_head_chooses_the_length_that_nobody_named(
    flags: tuple[str, ...], frames: int | AutoDuration, said: bool, capsys: Any
) -> None:
    assert completed(asked(*flags), DURATION_HEAD).num_frames == frames
    error = capsys.readouterr().err
    assert ("as long as the model finds right" in error) == said
    assert error.count("\n") == said


def test_without_a_head_or_in_a_repeated_clip_the_length_is_a_number(capsys: Any) -> None:
    assert completed(asked()).num_frames == 121
    config = GenerationConfig(prompt="b", num_frames=17)
    record = Record(pipeline="distilled", request=Request(config=config))
    assert completed(asked(record=record), DURATION_HEAD).num_frames == 17
    assert capsys.readouterr().err == ""


def test_the_hdr_command_has_the_official_tiles_and_its_class_has_not() -> None:
    tiling = HDRICLoraPipeline.command_defaults(holding("video_decoder"))["tiling"]
    side, frames = AxisTiling(1280, 256), AxisTiling(32, 16)
    assert TilingConfig.parse(tiling) == TilingConfig(frames=frames, height=side, width=side)
    assert "tiling" not in HDRICLoraPipeline.command_defaults(holding(*DIFFUSION_DECODER))
    assert "tiling" not in HDRICLoraPipeline.defaults(None, {})
    assert GenerationConfig(prompt="a").tiling == "auto"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("auto", "768x80:64x24"),
        ("none", None),
        ("1280x32:256x16", "1280x32:256x16"),
        ("1280x640x32:256x128x16", "1280x1280x32:256x128x16"),
        ("0x640x32:0x128x16", "0x32:0x16"),
        ("0x640x0:0x128x0", None),
    ],
)
@pytest.mark.parametrize("size", [(512, 768), (512, 800)])
def test_references_are_encoded_in_the_tiles_of_the_decoder(
    text: str, wanted: str | None, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides at the larger tile, above 512x768 pixels (spec/pipelines.md §9)."""
    seen: list[TilingConfig | None] = []

    def encode(video: np.ndarray, tiling: TilingConfig | None) -> np.ndarray:
        seen.append(tiling)
        return np.zeros((1, 1, 1, 1, 1), np.float32)

    video = np.broadcast_to(np.float32(0), (1, 3, 1, *size))
    monkeypatch.setattr(hdr_ic_lora, "load_reference", lambda *_, **__: video)
    engines = SimpleNamespace(video_encoder=lambda: SimpleNamespace(encode=encode))
    pipe: Any = SimpleNamespace(engines=engines)
    inputs = HDRICLoraInputs(references=(ReferenceFile(path=Path("x.mp4")),))
    pixels = VideoPixelShape(batch=1, num_frames=1, height=size[0], width=size[1], frame_rate=24.0)
    run: Any = SimpleNamespace(
        engines=engines,
        pixels=lambda divisor: pixels,
        request=SimpleNamespace(inputs=inputs),
        config=GenerationConfig(prompt="a", tiling=text),
    )
    HDRICLoraPipeline.references(pipe, run, 1, 1)
    tiled = size == (512, 800) and wanted is not None
    assert seen == [TilingConfig.parse(wanted) if tiled and wanted else None]
    assert encoder_tiling(text) == (None if wanted is None else TilingConfig.parse(wanted))
