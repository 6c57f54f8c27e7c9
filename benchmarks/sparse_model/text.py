"""What encodes prompts in released models: Gemma, projections, connectors, and the duration head
(spec/text_encoder.md, spec/duration_head.md).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.sparse_model.files import Shapes, shapes_of, write_sparse
from ltx2rt_export.demo.gemma import write_gemma
from ltx2rt_export.modules.connectors import Connector
from ltx2rt_export.modules.connectors_config import ConnectorConfig
from ltx2rt_export.modules.duration_head import DurationHead
from ltx2rt_export.modules.duration_head_config import DurationHeadConfig
from ltx2rt_export.modules.gemma import GemmaEncoder
from ltx2rt_export.modules.meta import on_meta
from ltx2rt_export.modules.text_projection import FeatureExtractorV1, FeatureExtractorV2

HIDDEN_SIZE = 3840
FEATURES = HIDDEN_SIZE * 49
TRANSFORMER = "model.diffusion_model."

GEMMA_3: dict[str, Any] = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 15360,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "num_hidden_layers": 48,
        "sliding_window": 1024,
        "vocab_size": 262208,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
}
GEMMA_4: dict[str, Any] = {
    "model_type": "gemma4_unified",
    "gemma_version": "gemma4-12b-ltx-v1",
    "text_config": {
        "model_type": "gemma4_unified_text",
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 15360,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 1,
        "head_dim": 256,
        "global_head_dim": 512,
        "attention_k_eq_v": True,
        "num_hidden_layers": 48,
        "sliding_window": 1024,
        "vocab_size": 262144,
    },
}

#: of the `transformer` object: LTX-2, which has the connectors' defaults but for these
CONNECTORS_2: dict[str, Any] = {
    "connector_positional_embedding_max_pos": [4096],
    "caption_channels": HIDDEN_SIZE,
}
#: LTX-2.3 and 2.5
CONNECTORS_23: dict[str, Any] = {
    "connector_num_attention_heads": 32,
    "connector_attention_head_dim": 128,
    "audio_connector_num_attention_heads": 32,
    "audio_connector_attention_head_dim": 64,
    "connector_num_layers": 8,
    "connector_positional_embedding_max_pos": [4096],
    "connector_apply_gated_attention": True,
    "caption_channels": HIDDEN_SIZE,
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_proj_input_norm": False,
    "caption_projection_second_linear": False,
}


def _connector(modality: str, heads: int, head_dim: int, blocks: int, *, gated: bool) -> Shapes:
    config = ConnectorConfig(
        heads=heads, head_dim=head_dim, blocks=blocks, registers=128, gated=gated, ff_bias=True,
        max_pos=(4096.0,), rope_type="split", frequencies_precision="float64",
    )  # fmt: skip
    prefix = f"{TRANSFORMER}{modality}_embeddings_connector."
    return shapes_of(prefix, on_meta(lambda: Connector(config)))


def connectors_2() -> Shapes:
    """Tensors of the connectors of LTX-2."""
    video = _connector("video", 30, 128, 2, gated=False)
    return video | _connector("audio", 30, 128, 2, gated=False)


def connectors_23() -> Shapes:
    """Tensors of the connectors of LTX-2.3 and 2.5."""
    video = _connector("video", 32, 128, 8, gated=True)
    return video | _connector("audio", 32, 64, 8, gated=True)


def projection_2() -> Shapes:
    """Tensors of the feature extractor of LTX-2."""
    module = on_meta(lambda: FeatureExtractorV1(FEATURES, HIDDEN_SIZE, bias=False))
    return shapes_of("text_embedding_projection.", module)


def projection_23() -> Shapes:
    """Tensors of the feature extractor of LTX-2.3 and 2.5."""
    module = on_meta(lambda: FeatureExtractorV2(FEATURES, 4096, 2048, bias=True))
    return shapes_of("text_embedding_projection.", module)


def duration_head() -> Shapes:
    """Tensors of the duration head of LTX-2.5."""
    streams = {"video": 4096, "audio": 2048}
    config = DurationHeadConfig(streams=streams, width=256, hidden=256, queries=1, heads=4)
    return shapes_of("duration_head.", on_meta(lambda: DurationHead(config)))


def gemma(config: dict[str, Any], prefix: str) -> Shapes:
    """Tensors of Gemma's language model below a prefix."""
    return shapes_of(prefix, on_meta(lambda: GemmaEncoder(config)))


def gemma_assets() -> dict[str, bytes]:
    """Tokenizer and its settings: those of the demo model, the real ones being Google's."""
    with tempfile.TemporaryDirectory() as folder:
        write_gemma(Path(folder), seed=0)
        names = ("tokenizer.json", "tokenizer_config.json", "processor_config.json")
        return {name: (Path(folder) / name).read_bytes() for name in names}


def packed_assets() -> dict[str, bytes]:
    """The same as tensors of a packed text encoder (spec/checkpoints.md §5)."""
    return {
        "tokenizer_json" if name == "tokenizer.json" else f"hf_asset__{name}": data
        for name, data in gemma_assets().items()
    }


def write_gemma_3(folder: Path) -> None:
    """Write the Gemma directory of LTX-2 and 2.3."""
    folder.mkdir(exist_ok=True)
    shapes = gemma(GEMMA_3, "language_model.model.")
    write_sparse(folder / "model.safetensors", shapes, {"format": "pt"})
    for name, data in gemma_assets().items():
        (folder / name).write_bytes(data)
    (folder / "config.json").write_text(json.dumps(GEMMA_3))
