"""`ltx2rt pipelines`: what each pipeline takes and needs."""

from __future__ import annotations

import argparse

from ltx2rt.cli.common import print_json
from ltx2rt.cli.flag_table import read_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def run(options: argparse.Namespace) -> int:
    rows = read_table()["pipelines"]
    if options.json:
        print_json(rows)
        return 0
    width = max(len(row["name"]) for row in rows)
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
