"""Stacks on a device give what stacks on the host give, and move nothing that they need not."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltx2rt.backends import layer_memory
from ltx2rt.backends.device_memory import DeviceMemory
from ltx2rt.backends.device_stack import DeviceStack
from ltx2rt.backends.host_stack import HostStack
from ltx2rt.backends.stack import Call
from ltx2rt.backends.tensorrt import TrtEngine
from ltx2rt.components import stage_constants
from ltx2rt.components.stack_plans import text_plan, transformer_plan
from ltx2rt.components.text_encoder import TextEncoder
from ltx2rt.components.transformer import ModalityInput, Perturbations, Transformer
from ltx2rt.engine import Array, Engine, EngineSpec
from ltx2rt.errors import ShapeError
from ltx2rt_export.component import Component
from ltx2rt_export.graph import with_dtype
from ltx2rt_export.modules.text_encoder import text_block, text_head, text_tail
from ltx2rt_export.modules.transformer import (
    transformer_block,
    transformer_head,
    transformer_tail,
)
from ltx2rt_export.reference import TorchEngine, official_layers
from tests.parity.device_engines import In16Bits, LoggingDevice, device_engine, make_library
from tests.parity.test_text_encoder import GEMMA, gemma_model_files, tokens
from tests.parity.tiny_transformer import METADATA, inputs, tiny_config, write_checkpoint
from tests.tolerances import BF16_BOUNDARY

CONFIG = tiny_config("2.3")
Streams = tuple[ModalityInput | None, ModalityInput | None]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> LoggingDevice:
    monkeypatch.setitem(sys.modules, "tensorrt", make_library())
    return LoggingDevice()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Component]:
    file = write_checkpoint(tmp_path_factory.mktemp("t") / "t.safetensors", CONFIG)
    return [
        make(METADATA, file) for make in (transformer_head, transformer_block, transformer_tail)
    ]


@pytest.fixture
def streams() -> Streams:
    given = inputs(CONFIG)
    mask = np.ones((2, 18, 18), np.float32)
    mask[:, :12, 12:] = 0.5
    return dataclasses.replace(given["video"], attention_mask=mask), given["audio"]


class Stacks:
    """The same components on the host and on a device, in float32 or behind 16-bit boundaries."""

    def __init__(self, parts: list[Component], folder: Path, *, bf16: bool = False) -> None:
        self._folder = folder
        self._engines = {p.name: self._bf16(p) if bf16 else TorchEngine(p) for p in parts}
        self._layers = {p.name: official_layers(p) for p in parts if p.weight_binding == "input"}
        self.options = {p.name: p.options for p in parts}
        if "transformer_block" in self._engines:
            served = range(len(self._layers["transformer_block"]))
            self.plan = transformer_plan(
                self.options["transformer_block"], {"transformer_block": served}
            )
        else:
            self.plan = text_plan(self.options["text_head"])

    def _bf16(self, part: Component) -> Engine:
        outputs = tuple(dataclasses.replace(s, dtype="bfloat16") for s in part.outputs)
        spec = EngineSpec(part.name, with_dtype(part, "bfloat16").inputs, outputs)
        return In16Bits(TorchEngine(part), spec)

    def _load(self, name: str, index: int) -> Mapping[str, Array]:
        return self._layers[name][index] if name in self._layers else {}

    def host(self) -> HostStack:
        return HostStack(self.plan.parts(lambda name, _: self._engines[name], self._load))

    def device(
        self, device: LoggingDevice, reserve: int | None = None, *, keep: bool = True
    ) -> DeviceStack:
        memory = DeviceMemory(device, reserve=reserve).opened()
        engines: dict[str, TrtEngine] = {}

        def engine(name: str, _: int) -> TrtEngine:
            if name not in engines:
                engines[name] = device_engine(
                    self._folder / name, self._engines[name], device, memory, self._load(name, 0)
                )
            return engines[name]

        return DeviceStack(self.plan.parts(engine, self._load), memory, keep=keep)


def transformers(
    parts: list[Component], device: LoggingDevice, folder: Path, **facts: Any
) -> tuple[Transformer, Transformer, DeviceStack]:
    stacks = Stacks(parts, folder, **facts)
    on_device = stacks.device(device)
    options = stacks.options["transformer_block"]
    return Transformer(stacks.host(), options), Transformer(on_device, options), on_device


def assert_same(got: tuple[Array | None, ...], want: tuple[Array | None, ...]) -> None:
    for mine, theirs in zip(got, want, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_device_changes_nothing(
    bf16: bool, parts: list[Component], streams: Streams, device: LoggingDevice, tmp_path: Path
) -> None:
    """Bit for bit, in float32 and in a bfloat16 spec, with and without a stage around the calls."""
    host, on_device, stack = transformers(parts, device, tmp_path, bf16=bf16)
    skips = Perturbations().and_skip("video_self", [1], [0]).and_skip("audio_to_video")
    frozen = dataclasses.replace(streams[1], enabled=False)
    calls = [
        (*streams, None),
        (*streams, skips),
        (streams[0], frozen, None),
        (streams[0], None, None),
        (None, streams[1], skips),
        (*streams, None),
    ]
    for call in calls:
        assert_same(on_device(*call), host(*call))
    with on_device.stage():
        for call in calls:
            assert_same(on_device(*call), host(*call))
    stack.close()
    stack.close()
    assert device.blocks == {}
    assert device.closed


def test_layers_may_be_run_by_two_components(
    parts: list[Component], streams: Streams, device: LoggingDevice, tmp_path: Path
) -> None:
    """Those that stay in 16 bits where the others are quantised."""
    stacks = Stacks(parts, tmp_path)
    want = Transformer(stacks.host(), parts[1].options)(*streams)
    plain = dataclasses.replace(parts[1], name="transformer_block_plain")
    stacks._engines[plain.name] = TorchEngine(plain)
    stacks._layers[plain.name] = stacks._layers[parts[1].name]
    stacks.plan = transformer_plan(parts[1].options, {parts[1].name: (0,), plain.name: (1,)})
    for stack in (stacks.host(), stacks.device(device)):
        assert_same(Transformer(stack, parts[1].options)(*streams), want)
    assert [name for what, name in device.log if what == "run"] == [
        "transformer_head", "transformer_block", "transformer_block_plain", "transformer_tail",
    ]  # fmt: skip


def test_a_16_bit_spec_is_close_to_float32(
    parts: list[Component], streams: Streams, device: LoggingDevice, tmp_path: Path
) -> None:
    _, narrow, _ = transformers(parts, device, tmp_path, bf16=True)
    wide = Transformer(Stacks(parts, tmp_path).host(), parts[1].options)
    for mine, theirs in zip(narrow(*streams), wide(*streams), strict=True):
        error = np.sqrt(np.mean((mine - theirs) ** 2) / np.mean(theirs**2))
        assert 0 < error < BF16_BOUNDARY.bound


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often tables and biases were made."""
    calls: Counter[str] = Counter()

    def count(name: str) -> None:
        make: Callable[..., Any] = getattr(stage_constants, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return make(*arguments, **options)

        monkeypatch.setattr(stage_constants, name, counted)

    count("rope_tables")
    count("attention_bias")
    return calls


def test_passes_of_a_stage_upload_what_changed(
    parts: list[Component],
    streams: Streams,
    device: LoggingDevice,
    tmp_path: Path,
    made: Counter[str],
) -> None:
    _, model, _ = transformers(parts, device, tmp_path)
    video, audio = streams
    skips = Perturbations().and_skip("video_self", [0])
    negative = dataclasses.replace(video, context=video.context[::-1].copy())
    passes: list[tuple[Any, ...]] = [(video, audio), (negative, audio), (video, audio, skips)]
    with model.stage():
        for each in passes:
            model(*each)
        once = {"rope_tables": 4, "attention_bias": 2}  # self and cross tables, two streams
        assert made == once
        for sigma in (0.5, 0.25):
            for video_given, audio_given, *rest in passes:
                step = dataclasses.replace(
                    video_given,
                    latent=video_given.latent * np.float32(sigma),
                    timesteps=video_given.timesteps * np.float32(sigma),
                )
                device.log.clear()
                model(step, audio_given, *rest)
                sent = {
                    *(a.nbytes for s in (step, audio_given) for a in (s.latent, s.sigma)),
                    *(np.unique(s.timesteps).nbytes for s in (step, audio_given)),
                }
                uploads = [size for what, size in device.log if what == "upload"]
                assert set(uploads) == sent
                assert len(uploads) == 6
                started = device.log.index(("run", "transformer_head"))
                after = [what for what, _ in device.log[started:]]
                assert after == ["run"] * 4 + ["download"] * 2  # head, two layers, tail
                assert "allocate" not in {what for what, _ in device.log}
        assert made == once
    with model.stage():
        model(*passes[0])
    assert made == {name: 2 * count for name, count in once.items()}


def test_a_stage_ends_with_what_it_held(
    parts: list[Component], streams: Streams, device: LoggingDevice, tmp_path: Path
) -> None:
    _, model, _ = transformers(parts, device, tmp_path)
    model(*streams)
    held = len(device.blocks)
    for _ in range(2):
        with model.stage():
            model(*streams)
            model(*streams)
            assert len(device.blocks) > held
        assert len(device.blocks) == held


def test_weights_without_room_go_up_at_every_use(
    parts: list[Component],
    streams: Streams,
    device: LoggingDevice,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layer_memory, "RING", 1)  # two layers stay in a ring of two
    stacks = Stacks(parts, tmp_path)
    layer = sum(a.nbytes for a in stacks._load("transformer_block", 0).values())
    host = Transformer(stacks.host(), parts[1].options)
    stack = stacks.device(device, reserve=device.memory)
    model = Transformer(stack, parts[1].options)
    for _ in range(2):
        device.log.clear()
        assert_same(model(*streams), host(*streams))
        uploads = [size for what, size in device.log if what == "upload"]
        assert sum(uploads) > 2 * layer
    stack.close()
    assert device.blocks == {}


def test_other_weights_leave_no_trace(
    parts: list[Component], streams: Streams, device: LoggingDevice, tmp_path: Path
) -> None:
    """None, A, B, none: as when a pipeline changes its LoRAs."""
    results = []
    for change in (None, 0.5, -0.5, None):
        stacks = Stacks(parts, tmp_path)
        for layer in stacks._layers["transformer_block"]:
            if change is not None:
                layer["attn1.to_q.weight"] = layer["attn1.to_q.weight"] + np.float32(change)
        device.closed = False
        stack = stacks.device(device)
        results.append(Transformer(stack, parts[1].options)(*streams))
        stack.close()
        assert device.blocks == {}
    assert_same(results[3], results[0])
    assert np.abs(results[1][0] - results[2][0]).max() > 1e-3


def test_constants_outlive_neither_stack_nor_stage(
    parts: list[Component], streams: Streams, device: LoggingDevice, tmp_path: Path
) -> None:
    _, model, stack = transformers(parts, device, tmp_path)
    with model.stage():
        model(*streams)
        stack.close()  # the pipeline was closed while a stage ran
    assert device.blocks == {}


@pytest.fixture(scope="module")
def text_parts(tmp_path_factory: pytest.TempPathFactory) -> list[Component]:
    gemma, model = gemma_model_files(tmp_path_factory.mktemp("text"))
    files = (GEMMA, gemma)
    return [text_head(*files), text_block(*files), text_tail(*files, {}, model)]


@pytest.mark.parametrize("keep", [False, True])
def test_the_text_encoder_is_the_same_class(
    keep: bool, text_parts: list[Component], device: LoggingDevice, tmp_path: Path
) -> None:
    stacks = Stacks(text_parts, tmp_path)
    host, stack = TextEncoder(stacks.host()), stacks.device(device, keep=keep)
    model, given = TextEncoder(stack), tokens()
    seen: list[tuple[int, int]] = []
    want = host(**given)
    for _ in range(2):
        seen.clear()
        device.log.clear()
        got = model(**given, on_layer=lambda done, total: seen.append((done, total)))
        assert_same((got.video, got.audio), (want.video, want.audio))
        assert seen == [(1, 2), (2, 2)]
    # both prompts run through a layer before the next one, whose weights go up once at most
    assert [w for kind, w in device.log if kind == "run"] == [
        "text_head", "text_head", *["text_block"] * 4, "text_tail", "text_tail",
    ]  # fmt: skip
    table = stacks._load("text_head", 0)["embed_tokens.weight"].nbytes
    assert [s for kind, s in device.log if kind == "upload"].count(table) == (0 if keep else 1)
    assert len([1 for kind, _ in device.log if kind == "download"]) == 4  # contexts, nothing else
    stack.close()
    assert device.blocks == {}


def test_what_is_missing_is_named_by_the_engine(
    parts: list[Component], device: LoggingDevice, tmp_path: Path
) -> None:
    stacks = Stacks(parts, tmp_path)
    for stack in (stacks.host(), stacks.device(device)):
        with pytest.raises(ShapeError, match=r"(?s)transformer_head.*video_latent is missing"):
            stack([Call({})])
