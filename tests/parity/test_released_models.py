"""Files with the names and shapes of the released models, at real size (their data are holes):
what is published about them agrees with ours, and every component finds its weights.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.sparse_model import write_sparse_model
from ltx2rt.names import TRANSFORMER
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt_export.catalog import rows_of
from ltx2rt_export.checkpoint import open_model
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
DECODERS = ("audio_decoder", "vocoder")
UPSAMPLERS = ("spatial_upsampler", "temporal_upsampler")
COMPONENTS = {
    "2": {*ENCODERS, *TRANSFORMER, *DECODERS, "video_decoder", "spatial_upsampler"},
    "2.3": {*ENCODERS, *TRANSFORMER, *DECODERS, "video_decoder", *UPSAMPLERS},
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
