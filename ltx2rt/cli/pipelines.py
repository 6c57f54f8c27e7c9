"""`ltx2rt pipelines`: what each pipeline takes and needs."""

from __future__ import annotations

import argparse
from typing import Any

from ltx2rt.cli.common import print_json
from ltx2rt.cli.fields import input_flags
from ltx2rt.pipelines.base import pipeline_class
from ltx2rt.pipelines.catalog import PIPELINES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def run(options: argparse.Namespace) -> int:
    rows = [facts_of(name) for name in PIPELINES]
    if options.json:
        print_json(rows)
        return 0
    width = max(len(name) for name in PIPELINES)
    for row in rows:
        traits = ["two stages" if row["two_stage"] else "one stage"]
        if row["default_size"] is not None:
            height, across = row["default_size"]
            traits = [f"{traits[0]}, {across}x{height}"]
        traits += ["guided"] if row["guided"] else []
        traits += [f"takes {' '.join(row['flags'])}"] if row["flags"] else []
        print(f"{row['name']:{width}}  {row['summary']}")
        print(f"{'':{width}}  {'; '.join(traits)}; needs {' '.join(row['requires'])}")
    return 0


def facts_of(name: str) -> dict[str, Any]:
    """A pipeline's row, from its class."""
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
