"""Run golden cases: `python -m tests.parity.run_golden DIR [--only components|pipelines|GLOB]
[--backend B] [--json]`.

One line a case; exits 1 when a case failed, 0 otherwise. Skipped cases are listed with their
reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.parity.golden import (
    BACKENDS,
    Result,
    Runner,
    case_name,
    component_files,
    load_case,
    run_case,
)


def results(root: Path, only: str | None, backends: list[str]) -> Iterator[Result]:
    """Every selected case of the directory on every backend, components first."""
    from tests.parity.pipelines import pipeline_files, run_pipeline_case

    pattern = "*" if only in (None, "components", "pipelines") else only
    for backend in backends:
        runner = Runner(root, backend)
        if only != "pipelines":
            for path in component_files(root):
                if fnmatch.fnmatch(case_name(path), pattern):
                    yield run_case(load_case(path), runner)
        if only != "components":
            for path in pipeline_files(root):
                if fnmatch.fnmatch(path.stem, pattern):
                    yield run_pipeline_case(path, runner)


def line(result: Result) -> str:
    """The human form of a result."""
    if result.skipped is not None:
        return f"skip  {result.backend:12} {result.case:44} {result.skipped}"
    state = "pass" if result.passed else "FAIL"
    numbers = (
        f"max_abs {result.max_abs:.2e}  rel_rms {result.rel_rms:.2e}  [{result.tolerance_class}]"
    )
    return f"{state}  {result.backend:12} {result.case:44} {numbers} {result.detail}".rstrip()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity.run_golden", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--only", help="components, pipelines, or a pattern of case names such as 'vae_*'"
    )
    parser.add_argument("--backend", choices=BACKENDS, help="default: both")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)
    if (
        not (options.directory / "components").is_dir()
        and not (options.directory / "pipelines").is_dir()
    ):
        parser.error(f"{options.directory} holds neither components/ nor pipelines/.")
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for result in results(
        options.directory, options.only, [options.backend] if options.backend else list(BACKENDS)
    ):
        key = "skipped" if result.skipped is not None else "passed" if result.passed else "failed"
        counts[key] += 1
        print(json.dumps(dataclasses.asdict(result)) if options.json else line(result), flush=True)
    print(", ".join(f"{n} {k}" for k, n in counts.items()), file=sys.stderr)
    if not any(counts.values()):
        parser.error(f"no case in {options.directory} matches {options.only!r}.")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
