"""Gemma as an encoder: token ids to all hidden states (spec/text_encoder.md §2).

The decoder layers are those of `transformers`; embedding, masks and rotary tables are here, so that
graphs hold neither caches nor mask utilities, and every constant is a real tensor although the
weights are on `meta`. As the diffusion transformer, Gemma is a head and a block that runs once a
layer.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt_export.modules.meta import add_table
from ltx2rt_export.modules.tables import MAX_TOKENS, Table

#: added to scores of masked keys: its exp() is 0, it fits float16, fully masked rows stay finite
MASKED = -1e4

#: `model_type` of a configuration -> module of `transformers.models`, prefix of its class names
FAMILIES = {
    "gemma3": ("gemma3", "Gemma3"),
    "gemma3_text": ("gemma3", "Gemma3"),
    "gemma4_unified": ("gemma4_unified", "Gemma4Unified"),
    "gemma4_unified_text": ("gemma4_unified", "Gemma4Unified"),
}


def _class(name: str, model_type: str) -> Any:
    package, prefix = FAMILIES[model_type]
    kind = "configuration" if name.endswith("Config") else "modeling"
    try:
        module = importlib.import_module(f"transformers.models.{package}.{kind}_{package}")
    except ImportError as error:
        raise UnsupportedError(
            f"the installed transformers has no {package}; install a newer one: {error}"
        ) from error
    return getattr(module, prefix + name, None)


def _text_config(config: Mapping[str, Any]) -> tuple[Any, str]:
    """The checked text configuration of a Gemma `config.json`, and its `model_type`."""
    from huggingface_hub.errors import StrictDataclassError

    model_type = str(config.get("model_type", "missing"))
    if model_type not in FAMILIES:
        raise UnsupportedError(
            f"the text encoder's model_type is {model_type!r}; supported: {', '.join(FAMILIES)}."
        )
    values = copy.deepcopy(dict(config.get("text_config") or config))
    try:
        text = _class("TextConfig", model_type)(**values)
    except (TypeError, ValueError, KeyError, StrictDataclassError) as error:
        raise CheckpointError(f"the Gemma configuration is not valid: {error}") from error
    problems = []
    if text.use_bidirectional_attention not in (None, False, "vision"):
        problems.append(
            f"use_bidirectional_attention is {text.use_bidirectional_attention!r}, expected false"
        )
    for key, expected in (("num_kv_shared_layers", 0), ("attn_logit_softcapping", None)):
        if getattr(text, key, expected) != expected:
            problems.append(f"{key} is {getattr(text, key)!r}, expected {expected}")
    if problems:
        raise UnsupportedError("this Gemma configuration is not supported", problems)
    return text, model_type


class _Grouped(Protocol):
    """A layer whose queries share keys and values in groups."""

    num_key_value_groups: int


def grouped_attention(
    module: _Grouped,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Grouped-query attention in the plain form that backends fuse; the softmax is in float32.

    Args:
        module: the layer; only `num_key_value_groups` is read.
        query: `[B, H, S, Dh]`.
        key, value: `[B, H / groups, S, Dh]`.
        attention_mask: additive, `[B, 1, S, S]`.
        scaling: factor of the scores.

    Returns:
        `[B, S, H, Dh]`, and no weights.
    """
    groups = module.num_key_value_groups
    if groups > 1:
        key = key.unsqueeze(2).expand(-1, -1, groups, -1, -1).flatten(1, 2)
        value = value.unsqueeze(2).expand(-1, -1, groups, -1, -1).flatten(1, 2)
    scores = (query * scaling) @ key.transpose(-2, -1) + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), None


class GemmaHead(nn.Module):
    """Token ids to embeddings, with the masks and rotary tables of every kind of layer.

    State-dict names are those below `language_model.model.`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        text, model_type = _text_config(config)
        rotary = _class("RotaryEmbedding", model_type) or _class("TextRotaryEmbedding", model_type)
        self.hidden_size: int = text.hidden_size
        self.layer_types: tuple[str, ...] = tuple(text.layer_types)
        self.kinds = tuple(dict.fromkeys(self.layer_types))
        self.windows = {k: text.sliding_window if "sliding" in k else None for k in self.kinds}
        self.embed_tokens = nn.Embedding(text.vocab_size, text.hidden_size)
        self.head_dims: dict[str, int] = {}
        with torch.device("cpu"):
            self.register_buffer("scale", torch.tensor(text.hidden_size**0.5), persistent=False)
            tables = rotary(text)
        for kind in self.kinds:
            frequencies = getattr(tables, f"{kind}_inv_freq").tolist()
            scaling = float(getattr(tables, f"{kind}_attention_scaling"))
            self.head_dims[kind] = 2 * len(frequencies)
            for part, name in enumerate(("cos", "sin")):
                facts = {"part": part, "frequencies": frequencies, "scaling": scaling}
                add_table(self, f"{kind}_{name}", Table("rotary", facts))

    @property
    def num_layers(self) -> int:
        return len(self.layer_types)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Embed.

        Args:
            input_ids: `[B, S]` int64, S up to 1024.
            attention_mask: `[B, S]` int64, 0 on pads. Positions count pads too.

        Returns:
            The scaled embeddings `[B, S, D]`; then for every kind of layer in order of first use
            its additive mask `[B, 1, S, S]` and its rotary tables, cosine and sine, `[1, S, Dh]`.
        """
        x = self.embed_tokens(input_ids)
        x = x * self.scale.to(x.dtype)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        found = [x]
        for kind, window in self.windows.items():
            found.append(_causal_bias(attention_mask, positions, window).to(x.dtype))
            cos, sin = getattr(self, f"{kind}_cos"), getattr(self, f"{kind}_sin")
            found += [_rows(cos, positions, x), _rows(sin, positions, x)]
        return tuple(found)


class GemmaBlock(nn.Module):
    """One decoder layer, as `transformers` has it, behind flat tensors."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, hidden: Tensor, attention_bias: Tensor, rope_cos: Tensor, rope_sin: Tensor
    ) -> tuple[Tensor]:
        """`[B, S, D]` to `[B, S, D]`; the other tensors are those of `GemmaHead` for its kind."""
        tables = (rope_cos, rope_sin)
        return (self.layer(hidden, attention_mask=attention_bias, position_embeddings=tables),)


def gemma_layer(config: Mapping[str, Any], index: int) -> nn.Module:
    """Decoder layer `index`; its state-dict names are those below `layers.<index>.`."""
    from transformers import AttentionInterface

    text, model_type = _text_config(config)
    AttentionInterface.register("ltx2rt", grouped_attention)
    text._attn_implementation = "ltx2rt"
    layer = _class("DecoderLayer", model_type) or _class("TextDecoderLayer", model_type)
    made: nn.Module = layer(text, index)
    return made


def gemma_norm(config: Mapping[str, Any]) -> nn.Module:
    """The norm after the last layer."""
    text, model_type = _text_config(config)
    made: nn.Module = _class("RMSNorm", model_type)(text.hidden_size, eps=text.rms_norm_eps)
    return made


class GemmaEncoder(GemmaHead):
    """Token ids to all hidden states in one module: for comparison, never shipped."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList([gemma_layer(config, i) for i in range(self.num_layers)])
        self.norm = gemma_norm(config)

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """Layers + 1 tensors `[B, S, D]`: the scaled embeddings, the output of every layer but
        the last, and the final norm of the last layer's output. Rows of pads are finite, without
        meaning.
        """
        x, *tables = super().forward(input_ids, attention_mask)
        of_kind = {kind: tables[3 * i : 3 * i + 3] for i, kind in enumerate(self.kinds)}
        states = [x]
        for layer, kind in zip(self.layers, self.layer_types, strict=True):
            bias, cos, sin = of_kind[kind]
            x = layer(x, attention_mask=bias, position_embeddings=(cos, sin))
            states.append(x)
        states[-1] = self.norm(x)
        return states


def _rows(table: Tensor, positions: Tensor, like: Tensor) -> Tensor:
    return table.index_select(1, positions).to(like.dtype)


def _causal_bias(attention_mask: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """`[B, 1, S, S]` float32: 0 where a query may see a key, `MASKED` elsewhere."""
    distance = positions[:, None] - positions[None, :]
    allowed = distance >= 0
    if window is not None and window < MAX_TOKENS:
        allowed = allowed & (distance < window)
    allowed = allowed[None, None] & (attention_mask != 0)[:, None, None, :]
    return torch.where(allowed, 0.0, MASKED)


class HiddenStates(nn.Module):
    """All hidden states as one tensor `[layers + 1, B, S, D]`: for comparison, never shipped."""

    def __init__(self, gemma: GemmaEncoder) -> None:
        super().__init__()
        self.gemma = gemma

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        return (torch.stack(self.gemma.states(input_ids, attention_mask)),)
