"""What a file says about its duration head (spec/duration_head.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt_export.component import TensorIndex
from ltx2rt_export.modules.transformer_config import Modalities

DEFAULT_HEADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DurationHeadConfig:
    """A duration head.

    Attributes:
        streams: stream -> width of its context, video first.
        width, hidden: of the pooler and of the MLP.
        queries, heads: of the pooler.
    """

    streams: Mapping[str, int]
    width: int
    hidden: int
    queries: int
    heads: int

    @classmethod
    def from_checkpoint(
        cls, config: Mapping[str, Any], tensors: TensorIndex, modalities: Modalities = "av"
    ) -> DurationHeadConfig:
        """Read the `duration_head` object of the metadata (often empty) and the head's tensors.

        Raises:
            CheckpointError: tensors are missing.
            UnsupportedError: the configuration contradicts the tensors; all problems are listed.
        """
        names = ("video", "audio") if modalities == "av" else (modalities,)
        needed = ["attention_pooler.query_tokens", "mlp_hidden.weight"]
        needed += [f"{name}_input_proj.weight" for name in names]
        missing = [name for name in needed if name not in tensors]
        if missing:
            raise CheckpointError("the duration head is incomplete", [f"no {m}" for m in missing])
        queries, width = tensors["attention_pooler.query_tokens"].shape
        hidden = tensors["mlp_hidden.weight"].shape[0]
        heads = config.get("num_pooler_heads", DEFAULT_HEADS)
        expected = {"pooler_hidden_dim": width, "num_queries": queries, "mlp_hidden": hidden}
        problems = [
            f"{key}={config[key]!r}, but the tensors have {value}"
            for key, value in expected.items()
            if config.get(key, value) != value
        ]
        if not isinstance(heads, int) or heads < 1 or width % heads:
            problems.append(f"num_pooler_heads={heads!r} does not divide a width of {width}")
        if problems:
            raise UnsupportedError("this duration head is not supported", problems)
        return cls(
            streams={name: tensors[f"{name}_input_proj.weight"].shape[1] for name in names},
            width=width,
            hidden=hidden,
            queries=queries,
            heads=heads,
        )
