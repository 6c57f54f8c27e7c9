"""Text conditioning against the specification's numbers and against transformers' own Gemma."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt_export.component import Component
from ltx2rt_export.modules.connectors import valid_first
from ltx2rt_export.modules.gemma_config import gemma_root
from ltx2rt_export.modules.text_encoder import (
    text_block,
    text_head,
    text_hidden_states,
    text_projection,
    text_tail,
)
from ltx2rt_export.modules.text_projection import FeatureExtractorV1, FeatureExtractorV2
from ltx2rt_export.reference import TorchEngine, load_weights
from tests.parity.exports import exported
from tests.parity.handlers.text import text_encoder_of
from tests.parity.ort_engine import ort_engine
from tests.tolerances import ORT_REL_RMS, TOLERANCES

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden_tiny_text.json").read_text())[
    "text"
]
NET, DEEP = TOLERANCES["net"], TOLERANCES["deep"]
PROJECTION = "text_embedding_projection."
GEMMA = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 12,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 40,
        "vocab_size": 64,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
}


def gen(name: str, shape: tuple[int, ...], amp: float) -> np.ndarray:
    """The integer-hash generator of the golden vectors (spec/transformer.md §20)."""
    wide = np.arange(np.prod(shape), dtype=np.uint64)
    low = np.uint64(0xFFFFFFFF)
    x = (wide * np.uint64(0x9E3779B1) + np.uint64(zlib.crc32(name.encode()))) & low
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(0x85EBCA6B)) & low
    x ^= x >> np.uint64(13)
    x = (x * np.uint64(0xC2B2AE35)) & low
    x ^= x >> np.uint64(16)
    return (amp * (x / 2.0**31 - 1.0)).astype(np.float32).reshape(shape)


def checkpoint_tensors() -> dict[str, np.ndarray]:
    """V2 projection and two gated connectors, 24 channels x 3 states to 64 and 32."""
    shapes: dict[str, tuple[int, ...]] = {}
    for modality, width in (("video", 64), ("audio", 32)):
        shapes[f"{PROJECTION}{modality}_aggregate_embed.weight"] = (width, 72)
        shapes[f"{PROJECTION}{modality}_aggregate_embed.bias"] = (width,)
        root = f"{modality}_embeddings_connector."
        shapes[f"{root}learnable_registers"] = (128, width)
        for i in range(2):
            block = f"{root}transformer_1d_blocks.{i}."
            for name, rows, columns in (
                ("attn1.to_q", width, width),
                ("attn1.to_k", width, width),
                ("attn1.to_v", width, width),
                ("attn1.to_out.0", width, width),
                ("attn1.to_gate_logits", 4, width),
                ("ff.net.0.proj", 4 * width, width),
                ("ff.net.2", width, 4 * width),
            ):
                shapes[f"{block}{name}.weight"] = (rows, columns)
                shapes[f"{block}{name}.bias"] = (rows,)
            shapes[f"{block}attn1.q_norm.weight"] = shapes[f"{block}attn1.k_norm.weight"] = (width,)
    return {
        name: 1 + 0.2 * gen(name, shape, 1.0) if "_norm." in name else gen(name, shape, 0.25)
        for name, shape in shapes.items()
    }


def saved(path: Path, tensors: Mapping[str, np.ndarray]) -> SafetensorsFile:
    save_file({k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}, path)
    return SafetensorsFile(path)


@pytest.fixture(scope="module")
def projection(tmp_path_factory: pytest.TempPathFactory) -> Component:
    path = tmp_path_factory.mktemp("text") / "m.safetensors"
    return text_projection({}, saved(path, checkpoint_tensors()), 24, 3)


@cache
def golden_inputs() -> dict[str, np.ndarray]:
    states = np.stack([gen(f"in.hidden.{i}", (1, 256, 24), 1.0 + i) for i in range(3)])
    mask = np.zeros((1, 256), np.int64)
    mask[:, -11:] = 1
    return {"hidden_states": states, "attention_mask": mask}


def close(got: Any, want: Any, bound: Any = NET) -> None:
    np.testing.assert_allclose(np.asarray(got), want, atol=bound.atol, rtol=bound.rtol)


def rel_rms(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.sqrt(((got - want) ** 2).sum() / (want**2).sum()))


# [B, S, D, L]: one layer, two tokens of two channels, then a pad with garbage
TOY = torch.tensor([[[[1.0], [2.0]], [[3.0], [6.0]], [[99.0], [-99.0]]]])
TOY_VALID = torch.tensor([[True, True, False]])


def test_v1_toy_of_the_specification() -> None:
    module = FeatureExtractorV1(2, 2, bias=False)
    module.aggregate_embed.weight.data = torch.eye(2)
    video, audio = module(TOY, TOY_VALID)
    assert video is audio
    close(video.detach(), [[[-3.2, -1.6], [0.0, 4.8], [0.0, 0.0]]])


def test_v2_toy_of_the_specification() -> None:
    module = FeatureExtractorV2(2, 2, 2, bias=False)
    module.video_aggregate_embed.weight.data = torch.eye(2)
    module.audio_aggregate_embed.weight.data = 2 * torch.eye(2)
    video, audio = module(TOY, TOY_VALID)
    close(video.detach(), [[[0.63246, 1.26491], [0.63246, 1.26491], [0.0, 0.0]]])
    close(audio.detach(), 2 * video.detach().numpy())


def test_v1_golden() -> None:
    module = FeatureExtractorV1(72, 24, bias=False)
    weight = gen(f"{PROJECTION}aggregate_embed.weight", (24, 72), 0.25)
    module.aggregate_embed.weight.data = torch.from_numpy(weight)
    inputs = golden_inputs()
    states = torch.from_numpy(inputs["hidden_states"]).permute(1, 2, 3, 0)
    got = module(states, torch.from_numpy(inputs["attention_mask"]) != 0)[0].detach().numpy()
    close(got[0, -1, :8], GOLDEN["v1_features"]["last_pos_first8"])
    close(np.abs(got[0, 0]).max(), GOLDEN["v1_features"]["pos0_abs_max"])
    close(np.linalg.norm(got), GOLDEN["v1_features"]["l2"])


def test_v2_and_connectors_golden(projection: Component) -> None:
    inputs = golden_inputs()
    got = TorchEngine(projection)(inputs)
    close(np.linalg.norm(got["video_features"]), GOLDEN["v2_video_features_l2"])
    close(np.linalg.norm(got["audio_features"]), GOLDEN["v2_audio_features_l2"])
    for modality in ("video", "audio"):
        want = GOLDEN[f"{modality}_encoding"]
        context = got[f"{modality}_context"]
        close(context[0, 0, :8], want["pos0_first8"])
        close(context[0, -1, -8:], want["last_pos_last8"])
        close(np.linalg.norm(context), want["l2"])


def test_projection_in_onnx_runtime(projection: Component) -> None:
    inputs = golden_inputs()
    want = TorchEngine(projection)(inputs)
    got = ort_engine(exported(projection))(inputs)
    for name, values in want.items():
        assert rel_rms(got[name], values) <= ORT_REL_RMS, name


def test_padding_side_does_not_matter(projection: Component) -> None:
    left = golden_inputs()
    right = {
        "hidden_states": np.roll(left["hidden_states"], 11, axis=2),
        "attention_mask": np.roll(left["attention_mask"], 11, axis=1),
    }
    right["hidden_states"][:, :, 11:] = 1e3
    engine = TorchEngine(projection)
    one, other = engine(left), engine(right)
    np.testing.assert_array_equal(one["video_context"], other["video_context"])
    np.testing.assert_array_equal(one["audio_context"], other["audio_context"])


def test_bfloat16_stays_close(projection: Component) -> None:
    inputs = golden_inputs()
    want = TorchEngine(projection)(inputs)
    got = TorchEngine(projection, torch.bfloat16)(inputs)
    # two blocks of about ten roundings of 2^-9 each, on values of size 1
    assert rel_rms(got["video_context"], want["video_context"]) < 0.03
    assert rel_rms(got["audio_context"], want["audio_context"]) < 0.03


@pytest.mark.parametrize(
    ("mask", "order"),
    [
        ([0, 0, 1, 1], [2, 3, 0, 0]),
        ([1, 1, 1, 0], [0, 1, 2, 0]),
        ([0, 1, 0, 1], [1, 3, 0, 0]),
        ([1, 1, 1, 1], [0, 1, 2, 3]),
    ],
)
def test_valid_first_is_stable(mask: list[int], order: list[int]) -> None:
    assert valid_first(torch.tensor([mask])).tolist() == [order]


def gemma_tensors() -> tuple[dict[str, np.ndarray], Any]:
    """Random weights under published names, and transformers' own model that holds them."""
    from transformers import Gemma3TextConfig, Gemma3TextModel

    torch.manual_seed(5)
    model = Gemma3TextModel(Gemma3TextConfig(**GEMMA["text_config"])).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2
    return {f"language_model.model.{k}": v.numpy() for k, v in model.state_dict().items()}, model


def gemma_model_files(folder: Path) -> tuple[Any, Any]:
    """Tensors of a tiny Gemma, and of the checkpoint that belongs to it."""
    tensors, _ = gemma_tensors()
    moved = {
        k if k.startswith(PROJECTION) else f"model.diffusion_model.{k}": v
        for k, v in checkpoint_tensors().items()
    }
    return saved(folder / "g.safetensors", tensors), saved(folder / "m.safetensors", moved)


def tokens() -> dict[str, np.ndarray]:
    ids = np.random.default_rng(3).integers(2, 64, (2, 128))
    mask = np.ones((2, 128), np.int64)
    mask[0, :50], mask[1, :3] = 0, 0
    return {"input_ids": np.where(mask, ids, 0), "attention_mask": mask}


def test_hidden_states_equal_those_of_transformers(tmp_path: Path) -> None:
    tensors, model = gemma_tensors()
    component = text_hidden_states(GEMMA, saved(tmp_path / "g.safetensors", tensors))
    inputs = tokens()
    got = TorchEngine(component)(inputs)["hidden_states"]
    assert np.isfinite(got).all()
    with torch.no_grad():
        want = model(
            **{k: torch.from_numpy(v) for k, v in inputs.items()}, output_hidden_states=True
        ).hidden_states
    valid = inputs["attention_mask"] != 0
    assert len(want) == len(got)
    for ours, theirs in zip(got, want, strict=True):
        close(ours[valid], theirs.numpy()[valid], DEEP)


def test_text_encoder_is_the_chain_of_its_parts_on_both_backends(
    tmp_path: Path, projection: Component
) -> None:
    gemma, model = gemma_model_files(tmp_path)
    files = (GEMMA, gemma)
    parts = [text_head(*files), text_block(*files), text_tail(*files, {}, model)]
    inputs = tokens()
    states = TorchEngine(text_hidden_states(GEMMA, gemma))(inputs)["hidden_states"]
    chain = TorchEngine(projection)(
        {"hidden_states": states, "attention_mask": inputs["attention_mask"]}
    )
    graphs = {c.name: exported(c) for c in parts}
    whole = text_encoder_of(parts, TorchEngine, lambda c: weights_of(c, frozenset()))
    compiled = text_encoder_of(
        parts,
        lambda c: ort_engine(graphs[c.name]),
        lambda c: weights_of(c, graphs[c.name].transposed),
    )
    seen: list[tuple[int, int]] = []
    torch_contexts = whole(**inputs)
    contexts = compiled(**inputs, on_layer=lambda done, total: seen.append((done, total)))
    alone = compiled(**{k: v[1:] for k, v in inputs.items()})
    assert seen == [(1, 2), (2, 2)]
    for name in ("video", "audio"):
        want = getattr(torch_contexts, name)
        close(want, chain[f"{name}_context"])
        assert rel_rms(getattr(contexts, name), want) <= ORT_REL_RMS
        assert rel_rms(getattr(alone, name), want[1:]) <= ORT_REL_RMS


def weights_of(component: Component, transposed: frozenset[str]) -> list[dict[str, np.ndarray]]:
    return [load_weights(layer, transposed) for layer in component.layers]


def test_nested_and_packed_names_are_found() -> None:
    for root in ("language_model.model.", "model.language_model.", "model.", ""):
        assert gemma_root({f"{root}embed_tokens.weight": None, "x": None}) == root
    with pytest.raises(CheckpointError, match="Gemma"):
        gemma_root({"model.diffusion_model.x": None})


def test_every_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = checkpoint_tensors()
    del tensors["video_embeddings_connector.transformer_1d_blocks.1.attn1.to_q.weight"]
    del tensors["audio_embeddings_connector.transformer_1d_blocks.0.ff.net.2.weight"]
    tensors[f"{PROJECTION}video_aggregate_embed.bias"] = np.zeros(63)
    with pytest.raises(CheckpointError) as caught:
        text_projection({}, saved(tmp_path / "m.safetensors", tensors), 24, 3)
    for part in ("1.attn1.to_q.weight is missing", "ff.net.2.weight is missing", "expected [64]"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"caption_proj_before_connector": True}, "caption_projection_first_linear is 'missing'"),
        ({"connector_num_attention_heads": 3}, "3 heads of 21"),
        ({"rope_type": "spiral"}, "rope_type is 'spiral'"),
    ],
)
def test_unknown_configurations_are_refused(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnsupportedError, match=words):
        text_projection(config, saved(tmp_path / "m.safetensors", checkpoint_tensors()), 24, 3)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model_type": "llama"}, UnsupportedError, "model_type is 'llama'"),
        (
            {"text_config": {**GEMMA["text_config"], "use_bidirectional_attention": True}},
            UnsupportedError,
            "use_bidirectional_attention",
        ),
        (
            {"text_config": {**GEMMA["text_config"], "hidden_size": "wide"}},
            CheckpointError,
            "hidden_size",
        ),
    ],
)
def test_other_language_models_are_refused(
    change: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        text_hidden_states({**GEMMA, **change}, {})
