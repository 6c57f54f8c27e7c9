"""Files with the names and shapes of the released models, at real size (their data are holes):
what is published about them agrees with ours, and every component finds its weights.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.sparse_model import write_sparse_model
from benchmarks.sparse_model.files import write_sparse
from ltx2rt.hub.catalog import SETS
from ltx2rt.names import TRANSFORMER
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt_export.catalog import components_of, rows_of
from ltx2rt_export.checkpoint import open_model
from ltx2rt_export.quantize.layer_choice import plan_quantization
from ltx2rt_export.shipped.find import shipped_component

#: LTX-2.5 as published (spec/checkpoints.md §4): tensors and bytes of every file. Of the text
#: encoder, 13 tensors and 137 MB are left out: vision, audio, further assets and a real tokenizer.
PUBLISHED = {
    "checkpoint": (4349, 42_018_190_584),
    "text_encoder": (686 - 13, 26_263_858_182 - 136_924_368),
    "video_vae": (396, 1_472_223_346),
    "audio_vae": (1329, 364_866_540),
    "spatial_upsampler": (72, 995_778_752),
    "temporal_upsampler": (72, 261_944_000),
    "duration_head": (15, 3_843_690),
}

#: headers differ: they hold metadata that nobody reads, and spaces
HEADER_BYTES = 40_000

ENCODERS = ("text_head", "text_block", "text_tail", "video_encoder", "audio_encoder")
GEMMA_3 = (*ENCODERS, "language_head")
DECODERS = ("audio_decoder", "vocoder")
UPSAMPLERS = ("spatial_upsampler", "temporal_upsampler")
COMPONENTS = {
    "2": {*GEMMA_3, *TRANSFORMER, *DECODERS, "video_decoder", "spatial_upsampler"},
    "2.3": {*GEMMA_3, *TRANSFORMER, *DECODERS, "video_decoder", *UPSAMPLERS},
    "2.5": {
        *ENCODERS, *TRANSFORMER, *DECODERS, *UPSAMPLERS, "text_block_full", "duration_head",
        "diffusion_features", "diffusion_context", "diffusion_pixels",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("generation", "name", "steps", "tensors"),
    [("2", "LTX-2", 40, 4049), ("2.3", "LTX-2.3", 30, 5947), ("2.5", "LTX-2.5", 30, 4349)],
)
def test_every_component_finds_its_weights(
    tmp_path: Path, generation: str, name: str, steps: int, tensors: int
) -> None:
    paths = write_sparse_model(tmp_path, generation)
    assert len(SafetensorsFile(paths["checkpoint"])) == tensors
    for file in SETS[f"{name.lower()}-dev"].files("bf16"):
        role = file.flag.removeprefix("--").replace("-", "_")
        if generation != "2.5" and role in ("checkpoint", "spatial_upsampler"):
            assert abs(paths[role].stat().st_size - file.bytes) < HEADER_BYTES
    files = open_model(**paths)
    assert (files.version.generation, files.version.num_inference_steps) == (name, steps)
    made = {c.name: c for c in (row.make(files) for row in rows_of(files))}
    assert made.keys() == COMPONENTS[generation]
    assert all(shipped_component(name, files) for name in made)  # no PyTorch is needed to build it
    assert len(made["transformer_block"].layers) == 48
    layers = len(made["text_block"].layers)
    if "text_block_full" in made:
        layers += len(made["text_block_full"].layers)
    assert layers == 48
    if generation == "2.5":
        for role, (count, size) in PUBLISHED.items():
            assert len(SafetensorsFile(paths[role])) == count, role
            assert abs(paths[role].stat().st_size - size) < HEADER_BYTES, role


def write_official_nvfp4(bf16: Path, path: Path) -> None:
    """The official NVFP4 transformer of LTX-2.5 (spec/checkpoints.md §7.2): all linears of 42
    blocks, and no `_quantization_metadata`. For want of that, ComfyUI takes the bytes of two codes
    for weights: "3520x4096 and 2048x4096" are activations of 3,520 tokens and codes `[4096, 2048]`
    (Comfy-Org/ComfyUI issue 15511).
    """
    file = SafetensorsFile(bf16)
    shapes, dtypes = {}, {}
    linear = re.compile(
        r"transformer_blocks\.(\d+)\..*(to_q|to_k|to_v|to_out\.0|ff\.net\.(0\.proj|2))\.weight"
    )
    for name, entry in file.items():
        shapes[name] = entry.shape
        match = linear.search(name)
        if match is None or not 1 <= int(match[1]) <= 42:
            continue
        out, width = entry.shape
        layer = name.removesuffix(".weight")
        tiles = (-(-out // 128) * 128, -(-width // 64) * 4)
        for part, shape, dtype in (
            ("weight", (out, width // 2), "U8"),
            ("weight_scale", tiles, "F8_E4M3"),
            ("weight_scale_2", (), "F32"),
            ("input_scale", (), "F32"),
        ):
            shapes[f"{layer}.{part}"], dtypes[f"{layer}.{part}"] = shape, dtype
    metadata = {k: v for k, v in file.metadata.items() if k != "_quantization_metadata"}
    write_sparse(path, shapes, metadata, dtypes=dtypes)


def test_the_official_nvfp4_file_is_what_it_is(tmp_path: Path) -> None:
    paths = write_sparse_model(tmp_path, "2.5")
    nvfp4 = tmp_path / "ltx-2.5-22b-distilled-transformer-nvfp4.safetensors"
    write_official_nvfp4(paths["checkpoint"], nvfp4)
    assert len(SafetensorsFile(nvfp4)) == 7877
    assert abs(nvfp4.stat().st_size - 18_721_548_408) < 4 * HEADER_BYTES
    files = open_model(**{**paths, "checkpoint": nvfp4})
    stored = files.storage_format
    assert stored is not None
    assert (stored.name, stored.layers, stored.static_input_scales) == ("nvfp4", 1176, 1176)
    assert files.version.is_distilled
    block = next(c for c in components_of(files) if c.name == "transformer_block")
    assert block.layers[1]["attn1.to_q.weight"].shape == (4096, 4096)
    plan = plan_quantization(block, "nvfp4-static")
    assert plan is not None
    assert plan.exact  # codes and scales are taken over bit by bit
    assert len(plan.modules) == 28
    assert plan.plain_layers == (0, 43, 44, 45, 46, 47)
