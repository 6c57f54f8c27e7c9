"""The flags of `ltx2rt generate` and the facts of the pipelines as data, for what only shows them.

They are made from the classes (`cli/fields.py`); importing those takes most of a second. So
`make docs` writes them down, and a test compares.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("flag_table.json")


def read_table() -> dict[str, Any]:
    """`pipelines`: a row a pipeline; `flags`: of each its `names`, its `group`, the `arguments` of
    `add_argument`, and `only_for`, the pipelines that take it, unless all do.
    """
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table
