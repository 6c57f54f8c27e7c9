"""`ltx2rt pull [NAME ...]`: fetch official files, or any file of the model hub, into its cache."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from ltx2rt.cli.common import print_json
from ltx2rt.cli.progress import add_progress_flags, printer_of
from ltx2rt.errors import OptionError
from ltx2rt.hub.catalog import SETS, HubFile, ModelSet
from ltx2rt.hub.fetch import Planned, check_disk, fetch, plan
from ltx2rt.hub.reference import HubReference, parse_reference
from ltx2rt.plain_data import nearest
from ltx2rt.progress import Job

#: flags of the listed files that `ltx2rt generate` takes, not `build`
_LATER = ("--distilled-lora",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"a set ({', '.join(SETS)}), or OWNER/NAME[@REVISION][:FILE] on the model hub; "
        "without any, the sets are listed",
    )
    parser.add_argument(
        "--precision", metavar="P", help="of a set's checkpoint (default: the first that it has)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be fetched and how large it is"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_progress_flags(parser)


def run(options: argparse.Namespace) -> int:
    if not options.names:
        rows = [_row(row) for row in SETS.values()]
        print_json(rows) if options.json else print("\n".join(_table()))
        return 0
    references = [ref for name in options.names for ref in _references(name, options.precision)]
    planned = plan(references)
    if options.dry_run:
        report = [_planned_row(one) for one in planned]
        print_json(report) if options.json else print("\n".join(_planned_lines(planned)))
        return 0
    check_disk(planned)
    job = Job(printer_of(options))
    places = fetch(
        planned, lambda done, total, name: job.report("fetch (bytes)", done, total, name)
    )
    if options.json:
        pairs = zip(planned, places, strict=True)
        print_json([_planned_row(one) | {"path": str(place)} for one, place in pairs])
        return 0
    for one, place in zip(planned, places, strict=True):
        print(f"{one.reference}: {place}")
    for name in options.names:
        if name in SETS:
            print("\n".join(_next_steps(SETS[name].files(options.precision))))
    return 0


def _references(name: str, precision: str | None) -> list[HubReference]:
    if name in SETS:
        row = SETS[name]
        if precision is not None and precision not in row.precisions:
            raise OptionError(
                f"{name} has no files in precision {precision!r}; it has "
                f"{', '.join(row.precisions)}."
            )
        return [file.reference for file in row.files(precision)]
    reference = parse_reference(name)
    if reference is None:
        raise OptionError(
            f"{name!r} is neither a set{nearest(name, SETS)} (there are {', '.join(SETS)}) nor a "
            "name on the model hub (OWNER/NAME[@REVISION][:FILE])."
        )
    return [reference]


def _table() -> list[str]:
    """The sets, what is in them, sizes and licences."""
    lines = []
    for row in SETS.values():
        sizes = ", ".join(f"{p} {_size(row, p):.0f} GB" for p in row.precisions)
        lines.append(f"{row.name:18} {row.summary} ({sizes})")
        lines += [
            f"   {' ' if file.size == 'published' else '~'}{file.bytes / 1e9:5.1f} GB  "
            f"{file.name}: {file.purpose} ({file.licence})"
            for file in row.files()
        ]
    return lines


def _size(row: ModelSet, precision: str) -> float:
    return sum(file.bytes for file in row.files(precision)) / 1e9


def _row(row: ModelSet) -> dict[str, Any]:
    return {
        "name": row.name,
        "summary": row.summary,
        "precisions": {
            precision: [
                {
                    "name": file.name,
                    "bytes": file.bytes,
                    "size": file.size,
                    "flag": file.flag,
                    "purpose": file.purpose,
                    "licence": file.licence,
                }
                for file in row.files(precision)
            ]
            for precision in row.precisions
        },
    }


def _planned_row(one: Planned) -> dict[str, Any]:
    return {
        "name": str(one.reference),
        "commit": one.commit,
        "files": list(one.files),
        "bytes": one.bytes,
        "missing_bytes": one.missing_bytes,
    }


def _planned_lines(planned: list[Planned]) -> list[str]:
    lines = [
        f"{one.bytes / 1e9:7.3f} GB  {one.reference} ({len(one.files)} "
        f"file{'s' * (len(one.files) > 1)}, {one.missing_bytes / 1e9:.3f} GB to fetch)"
        for one in planned
    ]
    return [*lines, f"{sum(one.missing_bytes for one in planned) / 1e9:7.3f} GB to fetch"]


def _next_steps(files: tuple[HubFile, ...]) -> list[str]:
    """The commands that use a set."""
    build = [f"{f.flag} {shlex.quote(f.name)}" for f in files if f.flag not in _LATER]
    later = [f"{f.flag} {shlex.quote(f.name)}" for f in files if f.flag in _LATER]
    lines = [f"ltx2rt build {' '.join(build)} -o BUNDLE"]
    return lines + [f"ltx2rt generate --bundle BUNDLE {' '.join(later)} ..."] * bool(later)
