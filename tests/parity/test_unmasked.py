"""Passes without a mask run blocks without biases, and give what those with biases of zero give."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import ltx2rt
from ltx2rt.backends.onnxruntime import OrtEngine
from ltx2rt.bundle.loader import Loader
from ltx2rt.components.transformer import ModalityInput, Transformer
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import InternalError
from ltx2rt.names import TRANSFORMER_BLOCK, TRANSFORMER_STACK
from ltx2rt_export.unmasked import _take_out
from tests.parity.random_models import rel_rms
from tests.tolerances import ORT_REL_RMS


def stream(options: dict[str, object], name: str, tokens: int) -> ModalityInput:
    facts = options[name]
    assert isinstance(facts, dict)
    generator = np.random.default_rng(len(name))
    start = np.arange(tokens, dtype=np.float32)[None, None, :, None]
    places = np.concatenate([start, start + 1], axis=-1)
    width = facts["caption_channels"] or facts["context_dim"]
    return ModalityInput(
        latent=generator.standard_normal((1, tokens, facts["in_channels"]), np.float32),
        sigma=np.ones(1, np.float32),
        timesteps=np.ones((1, tokens), np.float32),
        positions=np.repeat(places, len(facts["max_pos"]), axis=1),
        context=generator.standard_normal((1, 1024, width), np.float32),
    )


def test_only_masks_take_the_block_that_adds_them(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = ltx2rt.open_bundle(demo_bundle)
    options = dict(bundle.options(TRANSFORMER_BLOCK))
    video, audio = (stream(options, n, t) for n, t in (("video", 8), ("audio", 4)))
    ran: list[str] = []
    call = OrtEngine.__call__

    def noted(self: OrtEngine, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        ran.append(self.spec.component)
        return call(self, tensors)

    monkeypatch.setattr(OrtEngine, "__call__", noted)
    ones = dataclasses.replace(video, attention_mask=np.ones((1, 8, 8), np.float32))
    text = dataclasses.replace(audio, context_mask=np.ones((1, 1024), np.int64))
    half = dataclasses.replace(video, attention_mask=np.tri(8, dtype=np.float32)[None])
    stack = Loader(bundle).stack(TRANSFORMER_STACK, RuntimeConfig())
    transformer, found = Transformer(stack, options), []
    with transformer.stage():  # one stage: what passes share does not mix them up
        for streams in ((video, audio), (ones, audio), (video, text), (video, audio)):
            found.append(transformer(*streams))
        different = transformer(half, audio)
    stack.close()
    layers = stack.num_layers
    blocks = [name for name in ran if name.startswith(TRANSFORMER_BLOCK)]
    kinds = ["transformer_block_unmasked", *["transformer_block"] * 2]
    kinds += ["transformer_block_unmasked", "transformer_block"]
    assert blocks == [kind for kind in kinds for _ in range(layers)]
    for result in found[1:]:
        for mine, want in zip(result, found[0], strict=True):
            assert rel_rms(mine, want) <= ORT_REL_RMS
    assert rel_rms(different[0], found[0][0]) > ORT_REL_RMS


def test_a_mask_that_is_not_added_is_our_bug() -> None:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "video_attention_bias"], ["y"])],
        "scaled",
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [1])
            for n in ("x", "video_attention_bias")
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    onnx.checker.check_graph(graph)
    with pytest.raises(InternalError, match="video_attention_bias goes into Mul"):
        _take_out(graph, {"video_attention_bias": (1,)}, {})
