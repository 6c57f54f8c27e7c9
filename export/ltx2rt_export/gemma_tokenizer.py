"""Gemma's `tokenizer.json` made from what single files hold in its place: a SentencePiece model, or
the vocabulary of a GGUF file.

Both list pieces with scores and kinds. SentencePiece joins the neighbours whose union has the best
score; `tokenizers` wants these unions as a ranked list of pairs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ltx2rt.components.tokenizer import BOS_TOKEN
from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt.install import install_hint

#: kinds of pieces, as SentencePiece and GGUF number them
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
#: what stands for a space inside pieces
_SPACE = "▁"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Pieces by id, with the score and the kind of each; `pairs` that are joined, in order, where a
    file lists them.
    """

    pieces: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    pairs: Sequence[tuple[str, ...]] | None = None


def sentencepiece_vocabulary(model: bytes, where: str) -> Vocabulary:
    """The vocabulary of a SentencePiece model.

    Args:
        model: as `tokenizer.model` holds it.
        where: names it in errors.

    Raises:
        CheckpointError: it is none, or of a kind that no Gemma has.
        UnsupportedError: the package is not installed.
    """
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"{where} is a SentencePiece model, which needs the package sentencepiece: "
            f"{install_hint('sentencepiece')}"
        ) from error
    proto: Any = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(model)
    except DecodeError as error:
        raise CheckpointError(f"{where} is damaged: it is no SentencePiece model.") from error
    if not proto.pieces or proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        raise CheckpointError(f"{where} is no SentencePiece model of pairs (BPE), as Gemma's is.")
    return Vocabulary(
        [p.piece for p in proto.pieces],
        [p.score for p in proto.pieces],
        [p.type for p in proto.pieces],
    )


def tokenizer_json(vocabulary: Vocabulary, where: str) -> bytes:
    """`tokenizer.json` of a vocabulary.

    Raises:
        CheckpointError: it lacks `<bos>`, or `<unk>`.
    """
    ids: dict[str, int] = {}
    for number, piece in enumerate(vocabulary.pieces):
        ids.setdefault(piece, number)
    unknown = [p for p, k in zip(vocabulary.pieces, vocabulary.kinds, strict=True) if k == UNKNOWN]
    if BOS_TOKEN not in ids or not unknown:
        raise CheckpointError(f"{where} has no {BOS_TOKEN} or no unknown piece: it is not Gemma's.")
    begin: dict[str, Any] = {"SpecialToken": {"id": BOS_TOKEN, "type_id": 0}}
    text: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
    second: list[dict[str, Any]] = [
        {"SpecialToken": {"id": BOS_TOKEN, "type_id": 1}},
        {"Sequence": {"id": "B", "type_id": 1}},
    ]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(vocabulary),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, *second],
            "special_tokens": {
                BOS_TOKEN: {"id": BOS_TOKEN, "ids": [ids[BOS_TOKEN]], "tokens": [BOS_TOKEN]}
            },
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown[0],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": merges(vocabulary) if vocabulary.pairs is None else vocabulary.pairs,
        },
    }
    return json.dumps(content, ensure_ascii=False).encode()


def merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, those of the best score first."""
    rows = zip(vocabulary.pieces, vocabulary.scores, vocabulary.kinds, strict=True)
    scores = {piece: score for piece, score, kind in rows if kind == NORMAL}
    ranked = sorted(scores, key=lambda piece: -scores[piece])  # stable: those of one score by id
    return [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def _added(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Pieces that text is searched for before it is cut up, the longest first; runs of spaces are
    among them, which are found once spaces are written as in pieces.
    """
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return [
        {"id": number, "content": piece, "normalized": kind == USER_DEFINED}
        | {"special": kind != USER_DEFINED}
        | plain
        for number, (piece, kind) in enumerate(
            zip(vocabulary.pieces, vocabulary.kinds, strict=True)
        )
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]
