"""The process that builds one engine: `python -m ltx2rt_export.engines.worker` reads a request as
JSON on stdin and writes one JSON document a line to stdout: steps, then the result or the error.

Imports neither torch nor onnx: it starts in a tenth of a second.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

from ltx2rt.child import end_with_parent, own_lines
from ltx2rt.errors import Ltx2rtError
from ltx2rt_export.engines.builder import EngineRequest, build_engine


def main() -> int:
    end_with_parent()
    request = json.load(sys.stdin)
    lines = own_lines()

    def say(**document: Any) -> None:
        lines.write(json.dumps(document) + "\n")

    def on_step(phase: str, step: int, steps: int) -> None:
        say(phase=phase, step=step, steps=steps)

    try:
        built = build_engine(EngineRequest(**request), on_step)
    except OSError as error:
        say(os_error=error.errno, filename=str(error.filename or request["output"]))
        return 1
    except Ltx2rtError as error:
        say(error=str(error), kind=type(error).__name__)
        return 1
    say(built=dataclasses.asdict(built), peak_memory_bytes=peak_memory_bytes())
    return 0


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far; 0 where the system does not tell.

    Not `getrusage`: on Linux its figure starts with the size of the process that forked this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    sys.exit(main())
