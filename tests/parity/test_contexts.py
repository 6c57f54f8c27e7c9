"""Text contexts made apart from the clip that they are for."""

from __future__ import annotations

import base64
import io
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.components.embeddings import write_embeddings
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.config import GenerationConfig, GuidanceConfig, GuiderParams, RuntimeConfig
from ltx2rt.errors import CheckpointError, OptionError
from ltx2rt.names import TEXT_STACK
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.pipelines.one_stage import OneStagePipeline
from ltx2rt.pipelines.request import Request
from ltx2rt.progress import Preview
from ltx2rt.service.contexts import Encoder, take_contexts
from ltx2rt.service.events import Event, preview_event
from ltx2rt.service.maker import Maker, into_stream
from ltx2rt.service.requests import Order
from tests.parity.http_server import waited

CONFIG = GenerationConfig(
    prompt="a lake", height=64, width=64, num_frames=9,
    sigmas=(1.0, 0.0), stage_2_sigmas=(0.5, 0.0),
)  # fmt: skip
CONFIG_ONE = GenerationConfig(prompt="a lake", height=64, width=64, num_frames=9)
NAMES = ("video", "audio")


def test_a_clip_of_contexts_is_the_same_clip(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, runtime = open_bundle(demo_bundle), RuntimeConfig(threads=1, residency="resident")
    encoder, path = Encoder(bundle, runtime), tmp_path / "contexts.safetensors"
    found = encoder(["a lake", "a hill", "a lake"])
    assert [*found] == ["a lake", "a hill"]
    encoder.write(path, ["a lake", "a hill"], found)
    encoder.close()
    told: list[Event] = []
    prepared: list[Request] = []
    prepare = DistilledPipeline.prepare

    def counted(self: DistilledPipeline, request: Request) -> Request:
        prepared.append(request)
        return prepare(self, request)

    monkeypatch.setattr(DistilledPipeline, "prepare", counted)

    def made(contexts: Path | None, prompt: str = "a lake") -> tuple[bytes, dict[str, Any]]:
        config = replace(CONFIG, prompt=prompt)
        order, stream = Order(pipeline="distilled", request=Request(config=config)), io.BytesIO()
        told.clear()
        result = maker.make(
            order, into_stream(stream), told.append, threading.Event(), contexts=contexts
        )
        return stream.getvalue(), result

    def prompt_steps() -> set[int]:
        return {e.data["total"] for e in told if e.data.get("stage") == "prompt"}

    maker = Maker(bundle, runtime)
    with_contexts = made(path)[0]
    assert prompt_steps() == {1}  # they were ready
    assert len(prepared) == 1  # for the contexts and the clip alike
    assert TEXT_STACK not in maker._pipes["distilled"].engines._stacks
    maker.close()
    assert made(None)[0] == with_contexts
    assert prompt_steps() != {1}  # layer by layer
    with pytest.raises(OptionError, match=r"of \['a lake', 'a hill'\], but .* \['a hill'\]"):
        made(path, "a hill")
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError):
        made(path)
    maker.close()


def test_the_next_prompt_is_encoded_while_a_clip_is_decoded(demo_bundle: Path) -> None:
    bundle, runtime = open_bundle(demo_bundle), RuntimeConfig(threads=1, residency="resident")
    first, second = (
        Order(pipeline="distilled", request=Request(config=replace(CONFIG, prompt=prompt)))
        for prompt in ("a lake", "a hill")
    )
    stages: list[str] = []

    def made(maker: Maker, order: Order, following: Order | None = None) -> tuple[bytes, set[int]]:
        stream, steps = io.BytesIO(), set[int]()

        def emit(event: Event) -> None:
            stage = event.data.get("stage", "")
            if stage == "prompt":
                steps.add(event.data["total"])
            if stage == "decode audio" and following is not None and not event.data["step"]:
                maker.encode_ahead(following.plain)
                assert maker._text is not None
                text = maker._text
                waited(lambda: text._found, "the next prompt")  # beside this thread, in mid-decode
                stages.append(stage)

        maker.make(order, into_stream(stream), emit, threading.Event())
        return stream.getvalue(), steps

    maker = Maker(bundle, runtime)
    plain = made(maker, second)
    assert plain[1] != {1}
    maker.close()
    alone = made(maker, first, second)
    assert stages == ["decode audio"]
    ahead = made(maker, second)
    assert ahead == (plain[0], {1})  # the same clip, and its prompt was ready
    assert made(maker, first)[0] == alone[0]
    # one text encoder, whatever the pipeline
    assert TEXT_STACK not in maker._pipes["distilled"].engines._stacks
    maker.close()
    assert Maker(bundle, RuntimeConfig(residency="stage"))._text is None


def test_guided_clips_need_the_negative_prompt_too(demo_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "contexts.safetensors"
    with OneStagePipeline(open_bundle(demo_bundle)) as pipe:
        widths = pipe.source.context_widths()
        video, audio = (np.zeros((2, 4, widths[f"{n}_context"]), np.float32) for n in NAMES)
        write_embeddings(path, TextContext(video, audio), ["a lake", "bad"], "")
        for scale, negative, rows in ((3.0, "bad", 2), (1.0, "other", 1)):
            guider = GuiderParams(cfg_scale=scale)
            guidance = GuidanceConfig(video=guider, audio=guider, negative_prompt=negative)
            request = pipe.prepare(Request(config=CONFIG_ONE, guidance=guidance))
            take_contexts(pipe, request, path)
            assert pipe.engines.contexts is not None
            prompts, _, context = pipe.engines.contexts
            assert prompts == ("a lake", "bad")[:rows]
            assert len(context.video) == len(context.audio) == rows
        guider = GuiderParams(cfg_scale=3.0)
        guidance = GuidanceConfig(video=guider, audio=guider, negative_prompt="other")
        request = pipe.prepare(Request(config=CONFIG_ONE, guidance=guidance))
        with pytest.raises(OptionError, match=r"needs those of \['a lake', 'other'\]"):
            take_contexts(pipe, request, path)


def test_a_preview_is_a_small_animation() -> None:
    frames = np.zeros((3, 4, 6, 3), np.uint8)
    frames[1] = 255
    event = preview_event(Preview("stage_1", 2, 8, frames, 8.0)).plain
    assert {k: event[k] for k in ("event", "stage", "step", "total")} == {
        "event": "preview", "stage": "stage_1", "step": 2, "total": 8,
    }  # fmt: skip
    shown = Image.open(io.BytesIO(base64.b64decode(event["webp"])))
    assert (shown.format, shown.size, shown.n_frames) == ("WEBP", (48, 32), 3)  # type: ignore[attr-defined]
    shown.seek(1)
    assert np.asarray(shown).min() > 240
