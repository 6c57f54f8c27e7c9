"""What a dataclass's docstring says about its fields: help of flags, descriptions of a schema."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any


def attribute_texts(cls: type[Any]) -> dict[str, str]:
    """The first sentence of what a class's docstring says about each field, on one line."""
    names = {field.name for field in dataclasses.fields(cls)}
    _, _, text = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    current: list[str] = []
    for line in text.splitlines():
        match = re.match(r"\s*([a-z_0-9]+(?:, [a-z_0-9]+)*): (.*)", line)
        if match is not None and names.issuperset(match[1].split(", ")):
            current, line = match[1].split(", "), match[2]
        for name in current:
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    sentences = {name: text.partition(". ")[0] for name, text in found.items()}
    return {name: text.rstrip(".").replace("`", "") for name, text in sentences.items()}
