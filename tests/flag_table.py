"""`python -m tests.flag_table` writes `ltx2rt/cli/flag_table.json`: what `generate --help` and
`pipelines` show, from the classes of the pipelines.
"""

from __future__ import annotations

import json
from typing import Any

from ltx2rt.cli.fields import all_flags, flags_for, input_flags
from ltx2rt.cli.flag_table import TABLE
from ltx2rt.pipelines.base import pipeline_class
from ltx2rt.pipelines.catalog import PIPELINES


def pipeline_row(name: str) -> dict[str, Any]:
    """A pipeline's facts, from its class."""
    cls = pipeline_class(name)
    return {
        "name": name,
        "summary": cls.summary or " ".join((cls.__doc__ or "").split("\n\n")[0].split()),
        "guided": cls.guided,
        "two_stage": cls.two_stage,
        "default_size": cls.default_size and list(cls.default_size),
        "flags": input_flags(name),
        "requires": list(cls.requires),
    }


def flag_rows() -> list[dict[str, Any]]:
    """Every flag as the help shows it: its values are text."""
    takers = {name: {f.key for f in flags_for(pipeline_class(name))} for name in PIPELINES}
    rows = []
    for key, flag in all_flags().items():
        told = {k: v for k, v in flag.arguments().items() if v is not None and k != "type"}
        row: dict[str, Any] = {"names": flag.names, "group": flag.group, "arguments": told}
        only = [name for name, keys in takers.items() if key in keys]
        rows.append(row if len(only) == len(takers) else {**row, "only_for": only})
    return rows


def table() -> str:
    """The file: a line a row, so that changes stay small."""
    parts = {"pipelines": [pipeline_row(name) for name in PIPELINES], "flags": flag_rows()}
    lines = ["{"]
    for part, rows in parts.items():
        lines.append(f'"{part}": [')
        lines += [json.dumps(row, ensure_ascii=False) + "," for row in rows]
        lines[-1] = lines[-1][:-1]
        lines.append("],")
    lines[-1] = "]"
    return "\n".join([*lines, "}", ""])


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
