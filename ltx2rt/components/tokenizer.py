"""Prompts to token ids, as the text encoder takes them (spec/text_encoder.md §1)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx2rt.errors import CheckpointError
from ltx2rt.user_files import read_limited

#: every prompt is cut or padded to this many tokens
MAX_TOKENS = 1024

BOS_TOKEN = "<bos>"
#: the padding token, and the one used where a tokenizer has none
PAD_TOKENS = ("<pad>", "<eos>")

#: around every message of a chat, and before the sender's name
TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"

#: Gemma's has some 35 MB
MAX_TOKENIZER_BYTES = 500_000_000


class Tokenizer:
    """A Gemma tokenizer. Make it with `Tokenizer.from_file`."""

    def __init__(self, data: bytes, source: str) -> None:
        """Read the bytes of a `tokenizer.json`; `source` names it in errors.

        Raises:
            CheckpointError: the data is not a tokenizer, or lacks the tokens that we need.
        """
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        except Exception as error:  # the library raises nothing more precise
            raise CheckpointError(
                f"{source} is not a tokenizer.json: {error}; download or copy it again."
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.bos_id = self._id((BOS_TOKEN,), source)
        self.pad_id = self._id(PAD_TOKENS, source)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Open a `tokenizer.json`.

        Raises:
            CheckpointError: the file cannot be read or is not a Gemma tokenizer.
        """
        try:
            data = read_limited(Path(path), MAX_TOKENIZER_BYTES)
        except OSError as error:
            raise CheckpointError(
                f"cannot read the tokenizer {path}: {error.strerror or error}"
            ) from error
        except ValueError as error:
            raise CheckpointError(f"cannot read the tokenizer {str(path)!r}: {error}") from error
        return cls(data, str(path))

    def _id(self, names: Sequence[str], source: str) -> int:
        for name in names:
            found = self._tokenizer.token_to_id(name)
            if found is not None:
                return int(found)
        raise CheckpointError(
            f"{source} has no {' or '.join(names)} token: it is not the tokenizer of a Gemma model."
        )

    def encode(self, prompts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokenize prompts.

        Args:
            prompts: N texts; outer white space is removed. What does not fit is cut at the end.

        Returns:
            `input_ids` and `attention_mask`, both `[N, 1024]` int64: pads (mask 0) on the left,
            then `<bos>` and the text.
        """
        input_ids = np.full((len(prompts), MAX_TOKENS), self.pad_id, dtype=np.int64)
        attention_mask = np.zeros((len(prompts), MAX_TOKENS), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            ids = list(self._tokenizer.encode(prompt.strip()).ids)
            if ids[:1] != [self.bos_id]:
                ids.insert(0, self.bos_id)
            ids = ids[:MAX_TOKENS]
            input_ids[row, MAX_TOKENS - len(ids) :] = ids
            attention_mask[row, MAX_TOKENS - len(ids) :] = 1
        return input_ids, attention_mask

    def chat(self, message: str) -> list[int]:
        """Token ids of a chat that ends where the model's answer begins, as Gemma 3 was trained:
        one message of the user's. Names of special tokens inside it are plain text.

        Raises:
            CheckpointError: the tokenizer has no turns.
        """
        where = "this text encoder's tokenizer"
        turn, end = (self._id((name,), where) for name in (TURN, END_OF_TURN))
        said, end_of_line, answer = (
            self._plain(text) for text in (f"user\n{message.strip()}", "\n", "model\n")
        )
        return [self.bos_id, turn, *said, end, *end_of_line, turn, *answer]

    def _plain(self, text: str) -> list[int]:
        self._tokenizer.encode_special_tokens = True
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        finally:
            self._tokenizer.encode_special_tokens = False

    def stops(self) -> frozenset[int]:
        """The tokens that end an answer."""
        found = (self._tokenizer.token_to_id(name) for name in ("<eos>", END_OF_TURN))
        return frozenset(int(token) for token in found if token is not None)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer, without special tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def cut(self, prompt: str) -> tuple[int, str]:
        """How many tokens a prompt takes, `<bos>` with them, and the end of it that `encode` cuts
        off; the text is empty if it fits.
        """
        text = prompt.strip()
        found = self._tokenizer.encode(text)
        extra = 0 if found.ids[:1] == [self.bos_id] else 1
        count = len(found.ids) + extra
        return count, text[found.offsets[MAX_TOKENS - extra][0] :] if count > MAX_TOKENS else ""
