"""Hooks of the site (`mkdocs.yml`): its first page is the README, its reference is made from the
public names, and links to files outside `docs/` become plain text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import Any

import ltx2rt
from tests.api_page import SECTIONS, section_of
from tests.module_tables import ROOT

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCES = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)

#: methods of the base of all pipelines
PIPELINE = ("__call__", "generate_many", "close", "save_embeddings")

REFERENCE = """# Reference

Every public name with its docstring; [by what it is for](api.md). Examples run as they are, on a
small model, in `tests/parity/test_python_api.py`.
"""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that no file is of."""
    from mkdocs.structure.files import File

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    made = {"index.md": rewritten(readme, ""), "reference.md": reference()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page of `docs/`, with the links that the site has."""
    if page.file.generated_by:
        return markdown
    return rewritten(markdown, posixpath.dirname(f"docs/{page.file.src_uri}"))


def reference() -> str:
    """A heading a section, and in it every name with its signature and docstring."""
    names = sorted((n for n in ltx2rt.__all__ if n != "__version__"), key=str.lower)
    lines = [REFERENCE]
    for heading in SECTIONS:
        lines.append(f"## {heading}\n")
        if heading == "Pipelines":
            lines.append(directive("ltx2rt.pipelines.base.Pipeline", "Every pipeline", PIPELINE))
        chosen = [n for n in names if section_of(n) == heading]
        lines += [directive(f"{ltx2rt._HOMES[n]}.{n}", f"ltx2rt.{n}") for n in chosen]
    return "\n".join(lines)


def directive(place: str, heading: str, members: Sequence[str] = ()) -> str:
    """What mkdocstrings shows of a name; all of its members where none are named."""
    chosen = f"      members: [{', '.join(members)}]\n" if members else ""
    return (
        f"::: {place}\n    options:\n      heading: {heading}\n      toc_label: {heading}\n{chosen}"
    )


def rewritten(text: str, folder: str) -> str:
    """Markdown of a file in `folder`, its links as the site has them: outside of fenced blocks."""
    parts = FENCES.split(text)
    return "".join(
        p if i % 2 else LINK.sub(lambda m: link(m, folder), p) for i, p in enumerate(parts)
    )


def link(match: re.Match[str], folder: str) -> str:
    image, text, target = match.groups()
    path, mark, anchor = target.partition("#")
    if "://" in target or not path:
        return match[0]
    place = posixpath.normpath(posixpath.join(folder, path))
    if not place.startswith("docs/"):
        return f"{text} (`{place}`)" if text.strip("`") != place else f"`{place}`"
    if folder.startswith("docs"):
        return match[0]
    return f"{image}[{text}]({place.removeprefix('docs/')}{mark}{anchor})"
