"""The commands of the README and of the page of all uses, as they write them."""

from __future__ import annotations

import shlex

from tests.e2e.pages import Text, page

_BOTH = Text("README and pipelines", page("README.md").text + page("docs/pipelines.md").text)

README = _BOTH.text
commands = _BOTH.commands


def blocks(language: str = "") -> list[str]:
    """Fenced blocks of a language."""
    return _BOTH.blocks(language)


def words(command: str) -> list[str]:
    """A command as a shell splits it."""
    return shlex.split(command)
