"""What a checkpoint says about its text connectors (spec/text_encoder.md §4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt.latents.rope import RopeType
from ltx2rt_export.component import TensorIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorConfig:
    """Sizes and options of one connector; the last three are arguments of `ltx2rt.latents.rope`."""

    heads: int
    head_dim: int
    blocks: int
    registers: int
    gated: bool
    ff_bias: bool
    max_pos: tuple[float, ...]
    rope_type: RopeType
    frequencies_precision: str

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @classmethod
    def from_checkpoint(
        cls, config: Mapping[str, Any], tensors: TensorIndex, modality: str
    ) -> ConnectorConfig:
        """Read sizes from the tensors, and from the configuration what tensors do not tell.

        Args:
            config: the `transformer` object of the metadata, or {}.
            tensors: names below `{modality}_embeddings_connector.`.
            modality: `video` or `audio`; audio falls back to the video keys.

        Raises:
            CheckpointError: there is no connector.
            UnsupportedError: values that contradict each other or are unknown; all are listed.
        """
        if "learnable_registers" not in tensors:
            raise CheckpointError(
                f"the {modality} connector is missing: the checkpoint has no "
                f"{modality}_embeddings_connector.learnable_registers; pass a full LTX-2 "
                "checkpoint or the LTX-2.5 transformer file."
            )

        def value(key: str, default: Any) -> Any:
            names = [f"audio_connector_{key}"] if modality == "audio" else []
            known = (config.get(n) for n in (*names, f"connector_{key}"))
            return next((v for v in known if v is not None), default)

        registers, width = tensors["learnable_registers"].shape
        gates = tensors.get("transformer_1d_blocks.0.attn1.to_gate_logits.weight")
        found = [re.match(r"transformer_1d_blocks\.(\d+)\.", name) for name in tensors]
        last = max((int(m[1]) for m in found if m), default=-1)
        heads = value("num_attention_heads", gates.shape[0] if gates else max(width // 128, 1))
        max_pos = config.get("connector_positional_embedding_max_pos", [1] if config else [4096])
        result = cls(
            heads=heads,
            head_dim=value("attention_head_dim", width // heads),
            blocks=value("num_layers", last + 1),
            registers=registers,
            gated=gates is not None,
            ff_bias="transformer_1d_blocks.0.ff.net.2.bias" in tensors,
            max_pos=tuple(float(p) for p in max_pos),
            rope_type=config.get("rope_type", "split"),
            frequencies_precision=config.get(
                "frequencies_precision", "float32" if config else "float64"
            ),
        )
        problems = []
        if result.width != width:
            problems.append(
                f"{heads} heads of {result.head_dim} make a width of {result.width}, "
                f"but learnable_registers has {width}"
            )
        if gates is not None and gates.shape[0] != heads:
            problems.append(f"the gates are for {gates.shape[0]} heads, expected {heads}")
        if len(max_pos) != 1:
            problems.append(
                f"connector_positional_embedding_max_pos is {max_pos!r}, expected one number"
            )
        if result.rope_type not in ("split", "interleaved"):
            problems.append(f"rope_type is {result.rope_type!r}, expected split or interleaved")
        if problems:
            raise UnsupportedError(f"the {modality} connector is not supported", problems)
        return result
