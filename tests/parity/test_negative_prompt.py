"""The default negative prompt is our own text: it repeats no phrase of the public one."""

from __future__ import annotations

import re

from diffusers.pipelines.ltx2.utils import DEFAULT_NEGATIVE_PROMPT as PUBLIC

from ltx2rt.config import DEFAULT_NEGATIVE_PROMPT


def runs_of_words(text: str, length: int) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9-]+", text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def test_no_phrase_is_that_of_the_public_text() -> None:
    assert runs_of_words(DEFAULT_NEGATIVE_PROMPT, 2) & runs_of_words(PUBLIC, 2) <= {("out", "of")}
    assert runs_of_words(PUBLIC, 2)
