"""Commands and programs of the pages, as the pages write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

#: an explanation stands behind a command, some spaces away
COMMENT = re.compile(r"\s{3,}.*$")


@dataclass(frozen=True)
class Text:
    """A page, or what stands under one of its headings."""

    name: str
    text: str

    def blocks(self, *languages: str) -> list[str]:
        """Fenced blocks of these languages; `""` are those that name none."""
        return [block for kind, block in _FENCE.findall(self.text) if kind in languages]

    def commands(self, beginning: str = "") -> list[str]:
        """Commands that begin so, continued lines put together, without explanations and pipes."""
        lines = [
            line
            for block in self.blocks("", "sh")
            for line in block.replace("\\\n", "").splitlines()
        ]
        chosen = [COMMENT.sub("", re.sub(r"(?<=\S) {3,}(?=--)", " ", line)) for line in lines]
        return [line.split(" | ")[0] for line in chosen if line.startswith(beginning)]

    def command(self, beginning: str) -> str:
        """The one command that begins so."""
        found = self.commands(beginning)
        assert len(found) == 1, f"{self.name} has {len(found)} commands that begin {beginning!r}"
        return found[0]

    def rows(self, heading: str) -> list[list[str]]:
        """The rows of tables whose first column has this heading."""
        found, inside = [], False
        for line in self.text.splitlines():
            cells = [cell.strip() for cell in line.strip("| ").split("|")] if line else [""]
            if cells[0] == heading:
                inside = True
            elif not line.startswith("|"):
                inside = False
            elif inside and not cells[0].startswith("--"):
                found.append(cells)
        return found


def page(name: str, heading: str | None = None) -> Text:
    """A page by its path in the repository; with a heading, what stands under it."""
    text = (_ROOT / name).read_text(encoding="utf-8")
    if heading is None:
        return Text(name, text)
    outside = _FENCE.sub(lambda m: m[0].replace("\n#", "\n\0#"), text)  # no headings in blocks
    parts = re.split(r"^#+ (.+)$", outside, flags=re.MULTILINE)
    named = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert heading in named, f"{name} has no heading {heading!r}"
    return Text(f"{name}, {heading}", named[heading].replace("\0#", "#"))
