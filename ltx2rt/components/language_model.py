"""Gemma as a language model: a request to an answer, token by token (spec/text_encoder.md §6).

Its layers keep no keys and values between tokens: every token runs all of the text so far. That
costs one encoding of a prompt a token, and needs no graph beside those that encode prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from ltx2rt.backends.stack import Call, Stack
from ltx2rt.components.tokenizer import MAX_TOKENS, Tokenizer
from ltx2rt.engine import Array
from ltx2rt.errors import EnhanceError
from ltx2rt.sampling.tokens import TokenSampling, next_token

#: tokens of an answer, at most
MAX_NEW_TOKENS = 512
#: of the tokens that the graphs hold, what a request leaves to its answer at least
LEAST_NEW_TOKENS = 200
#: texts are padded on the left to a multiple of so many tokens
MULTIPLE = 8

logger = logging.getLogger(__name__)

#: called with (tokens written, tokens at most)
OnToken = Callable[[int, int], None]


class LanguageModel:
    """Writes answers.

    Args:
        stack: of `stack_plans.text_plan` with the language head; closed by its owner.
        multiple: what the number of tokens of a call has to be a multiple of.
    """

    def __init__(self, stack: Stack, tokenizer: Tokenizer, *, multiple: int = MULTIPLE) -> None:
        self._stack = stack
        self._tokenizer = tokenizer
        self._multiple = multiple

    def answer(
        self,
        request: str,
        *,
        seed: int,
        sampling: TokenSampling | None = None,
        most: int | None = None,
        on_token: OnToken | None = None,
    ) -> str:
        """What the model says to one message of the user's.

        Args:
            request: the message, instructions first.
            seed: of the drawing: the same request gives the same answer on the same machine.
            sampling: None: as published.
            most: tokens of the answer; None: `MAX_NEW_TOKENS`, and as many as find room.
            on_token: called after each token.

        Raises:
            EnhanceError: the request leaves no room for an answer.
            CheckpointError: the tokenizer belongs to no Gemma that answers.
        """
        given = self._tokenizer.chat(request)
        if (room := MAX_TOKENS - len(given)) < LEAST_NEW_TOKENS:
            raise EnhanceError(
                f"the prompt to enhance and its instructions take {len(given)} tokens of the "
                f"{MAX_TOKENS} that this model holds with its answer, for which at least "
                f"{LEAST_NEW_TOKENS} are kept: shorten the prompt by "
                f"{LEAST_NEW_TOKENS - room} tokens, or name another model."
            )
        most = min(MAX_NEW_TOKENS if most is None else most, room)
        generator = np.random.default_rng(seed % 2**64)
        stops, answer = self._tokenizer.stops(), list[int]()
        while len(answer) < most:
            scores = self.scores([*given, *answer])
            token = next_token(scores, sampling or TokenSampling(), generator)
            if token in stops:
                break
            answer.append(token)
            if on_token is not None:
                on_token(len(answer), most)
        else:
            logger.warning("the enhanced prompt was cut after %d tokens", most)
        return self._tokenizer.decode(answer)

    def scores(self, tokens: Sequence[int]) -> Array:
        """Scores `[V]`, float32, of what follows these tokens (at most 1024)."""
        pads = -len(tokens) % self._multiple
        ids = np.full((1, pads + len(tokens)), self._tokenizer.pad_id, np.int64)
        ids[0, pads:] = tokens
        mask = np.zeros_like(ids)
        mask[0, pads:] = 1
        (out,) = self._stack([Call({"input_ids": ids, "attention_mask": mask})])
        scores: Array = out["scores"][0]
        return scores
