"""The process that traces graphs: `python -m ltx2rt_export.engines.trace_worker` reads a request a
line as JSON on stdin, traces that component into the cache and answers with a line of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import Any

from ltx2rt.bundle.manifest import BuildInputs
from ltx2rt.child import end_with_parent, own_lines
from ltx2rt.errors import Ltx2rtError
from ltx2rt.plain_data import from_plain
from ltx2rt_export.bundle import open_inputs
from ltx2rt_export.catalog import rows_of
from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.engines.cache import EngineCache
from ltx2rt_export.engines.graphs import GraphCache


def main() -> int:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent ends this process
    lines = own_lines()
    opened: dict[str, ModelFiles] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            trace(request, opened)
        except Ltx2rtError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        lines.write(json.dumps(answer) + "\n")
    return 0


def trace(request: dict[str, Any], opened: dict[str, ModelFiles]) -> None:
    """Trace one component into the cache.

    Args:
        request: `inputs` (of the build), `folder` (of the cache), `component`, its `options` and
            `dtype`.
        opened: files of the build, opened once.
    """
    name = request["component"]
    key = json.dumps(request["inputs"])
    if key not in opened:
        inputs = from_plain(BuildInputs, request["inputs"], "the build")
        opened[key] = open_inputs(inputs, [name])
    row = next(row for row in rows_of(opened[key]) if row.name == name)
    component = dataclasses.replace(row.make(opened[key]), options=request["options"])
    GraphCache(EngineCache(Path(request["folder"]))).export(component, request["dtype"])


if __name__ == "__main__":
    sys.exit(main())
