"""Gemma's language head: the hidden state of the last token to a score for every token that may
follow (spec/text_encoder.md §6).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ltx2rt.engine import TensorSpec
from ltx2rt.names import LANGUAGE_HEAD
from ltx2rt_export.component import Component, TensorIndex
from ltx2rt_export.modules.gemma import GemmaHead, gemma_norm
from ltx2rt_export.modules.gemma_config import gemma_root
from ltx2rt_export.modules.meta import match_weights, on_meta

TRACE = {"B": 2, "S": 256}


class LanguageHead(nn.Module):
    """The final norm, and the product with the token embeddings: Gemma ties the two.

    State-dict names are those below `language_model.model.`.
    """

    def __init__(self, norm: nn.Module, vocabulary: int, width: int) -> None:
        super().__init__()
        self.norm = norm
        self.embed_tokens = nn.Embedding(vocabulary, width)

    def forward(self, hidden: Tensor) -> tuple[Tensor]:
        """Outputs of the last layer `[B, S, D]` to scores `[B, V]` of what follows the last token.

        The weight is the left factor: it is taken as it lies, transposed would be a second copy.
        """
        last = self.norm(hidden[:, -1])
        return ((self.embed_tokens.weight @ last.transpose(0, 1)).transpose(0, 1),)


def language_head(gemma_config: Mapping[str, Any], gemma_tensors: TensorIndex) -> Component:
    """The head of a Gemma that answers.

    Raises:
        CheckpointError: tensors are missing or do not fit.
        UnsupportedError: a configuration we do not support.
    """
    gemma = on_meta(lambda: GemmaHead(gemma_config))
    vocabulary, width = gemma.embed_tokens.weight.shape
    norm = on_meta(lambda: gemma_norm(gemma_config))
    head = on_meta(lambda: LanguageHead(norm, vocabulary, width))
    root = gemma_root(gemma_tensors)
    return Component(
        name=LANGUAGE_HEAD,
        module=head,
        inputs=(TensorSpec("hidden", "float32", ("B", "S", width)),),
        outputs=(TensorSpec("scores", "float32", ("B", vocabulary)),),
        weights=match_weights(head, gemma_tensors, "the text encoder", root),
        trace=TRACE,
    )
