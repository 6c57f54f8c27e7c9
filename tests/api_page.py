"""`python -m tests.api_page` writes `docs/api.md` from the public names and their docstrings."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import ltx2rt

PAGE = Path(__file__).parents[1] / "docs/api.md"

#: heading -> which names stand below it; a name belongs to the first that takes it
SECTIONS = {
    "Bundles": {"Bundle", "build", "open_bundle"},
    "What to make, and how": {
        "AutoDuration", "GenerationConfig", "GuidanceConfig", "GuiderParams", "GuiderSchedule",
        "ImageCondition", "Lora", "NeighbourClip", "ReferenceFile", "RuntimeConfig",
        "VideoEncoding", "frame_size",
    },
    "Pipelines": re.compile(r"Pipeline$"),
    "Further inputs of a pipeline": re.compile(r"Inputs$|^TimeWindow$"),
    "What lies in memory": re.compile(r"_file$"),
    "Results": re.compile(r"Clip$|^Record$|^record_in$|^open_latents$"),
    "Long clips": {"Segment", "join_clips", "make_long"},
    "Progress": {"Job", "Preview", "Progress", "Span", "Trace"},
    "Prompt enhancement": {"EnhanceConfig", "enhance_prompt"},
    "Errors": re.compile(r"Error$|^Cancelled$"),
}  # fmt: skip

HEAD = """# Public names

What `import ltx2rt` gives; docstrings say the rest. Everything else may change in any release.
Made from `ltx2rt/__init__.pyi` by `python -m tests.api_page`.
"""


def section_of(name: str) -> str:
    """The heading a name stands below."""
    for heading, rule in SECTIONS.items():
        if name in rule if isinstance(rule, set) else rule.search(name):
            return heading
    raise LookupError(f"{name} is public and in no section of {__name__}")


def first_sentence(name: str) -> str:
    """What a name is for, of its own docstring."""
    text = inspect.getdoc(getattr(ltx2rt, name))
    assert text, f"{name} is public and has no docstring"
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", paragraph)[0].replace("|", "\\|")


def page() -> str:
    names = sorted((n for n in ltx2rt.__all__ if n != "__version__"), key=str.lower)
    lines = [HEAD]
    for heading in SECTIONS:
        rows = [f"| `{n}` | {first_sentence(n)} |" for n in names if section_of(n) == heading]
        lines += [f"## {heading}", "", "| name | is |", "|---|---|", *rows, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
