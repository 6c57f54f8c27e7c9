"""What the kernel benchmark times: shapes of LTX's attentions and rows, their work and traffic.

Names say what varies: head dim, queries x keys; operator, tokens, width. Batch 1, 32 heads.
"""

from __future__ import annotations

from dataclasses import dataclass

HEADS = 32
BYTES = 2  # bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCase:
    """Attention of `queries` tokens to `keys` tokens; `masked`: with a bias of keys."""

    head_dim: int
    queries: int
    keys: int
    masked: bool = False

    @property
    def name(self) -> str:
        mask = "-masked" if self.masked else ""
        return f"attention-{self.head_dim}-{self.queries}x{self.keys}{mask}"

    @property
    def flops(self) -> int:
        """Two products, two operations a multiply-add; the softmax is not counted."""
        return 4 * HEADS * self.head_dim * self.queries * self.keys

    @property
    def bytes(self) -> int:
        """Least traffic: q, k, v and the result once each."""
        return BYTES * HEADS * self.head_dim * 2 * (self.queries + self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCase:
    """A memory-bound operator on `tokens` rows; `elements` it must move, per element of a row."""

    operator: str
    tokens: int
    width: int
    elements: float

    @property
    def name(self) -> str:
        return f"{self.operator}-{self.tokens}x{self.width}"

    @property
    def bytes(self) -> int:
        """Least traffic, index and weights left out."""
        return int(BYTES * self.tokens * self.width * self.elements)


Case = AttentionCase | RowCase

#: video tokens of 768x512x9, x121, 1024x1536x121, 1088x1920x121, and a long clip
VIDEO_TOKENS = (768, 6144, 24576, 32640, 65536)

ATTENTIONS = (
    *(AttentionCase(head_dim=128, queries=n, keys=n) for n in VIDEO_TOKENS),
    AttentionCase(head_dim=128, queries=8191, keys=8191, masked=True),
    AttentionCase(head_dim=128, queries=6144, keys=1024, masked=True),
    AttentionCase(head_dim=64, queries=6144, keys=126),
    AttentionCase(head_dim=64, queries=126, keys=6144),
    AttentionCase(head_dim=64, queries=8192, keys=8192),
)

#: elements moved per element of a row: q and k read and written, the tables that they share read
#: once; x read and written; x and y read, x written
ELEMENTS = {"qk_norm_rope": 5.0, "adaln_modulate": 2.0, "gated_residual": 3.0}
ROWS = tuple(
    RowCase(operator=operator, tokens=tokens, width=4096, elements=elements)
    for operator, elements in ELEMENTS.items()
    for tokens in (6144, 24576)
)

CASES: dict[str, Case] = {case.name: case for case in (*ATTENTIONS, *ROWS)}

#: cases that tile sizes are chosen by: both head dims, one with a bias
SEARCHED = tuple(
    case
    for case in ATTENTIONS
    if case.name
    in ("attention-128-6144x6144", "attention-128-8191x8191-masked", "attention-64-8192x8192")
)
