"""The commands of the README and of the page of all uses, as they write them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]

README = "".join(
    (_ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/pipelines.md")
)

#: an explanation stands behind a command, some spaces away
COMMENT = re.compile(r"\s{3,}.*$")


def blocks(language: str = "") -> list[str]:
    """Fenced blocks of a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for kind, text in found if kind == language]


def commands(beginning: str) -> list[str]:
    """Commands that begin so, continued lines put together, without explanations and pipes."""
    lines = [line for block in blocks() for line in block.replace("\\\n", "").splitlines()]
    chosen = [COMMENT.sub("", re.sub(r"(?<=\S) {3,}(?=--)", " ", line)) for line in lines]
    return [line.split(" | ")[0] for line in chosen if line.startswith(beginning)]


def words(command: str) -> list[str]:
    """A command as a shell splits it."""
    return shlex.split(command)
