"""`ltx2rt lora merge|info`: combine LoRA files without a model, and explain one."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.cli.common import parse_lora, print_json
from ltx2rt.errors import OptionError
from ltx2rt.lora.combine import DTYPES, METHODS, merge_loras
from ltx2rt.lora.describe import describe_lora, short_metadata
from ltx2rt.lora.files import find_lora, open_lora


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "`ltx2rt lora merge --help` and `ltx2rt lora info --help` explain each; both take --json."
    )
    actions = parser.add_subparsers(dest="action", metavar="{merge,info}", required=True)
    summary = "merge LoRA files into one, in the official format, at strength 1"
    merge = actions.add_parser("merge", help=summary, description=summary, allow_abbrev=False)
    merge.add_argument(
        "loras", nargs="+", metavar="FILE[:STRENGTH]", help="in order; strength 1 if omitted"
    )
    merge.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    merge.add_argument(
        "--method",
        default="concat",
        choices=METHODS,
        help="concat: the exact sum, ranks add up. orthogonal: per module, first take out of each "
        "LoRA the outputs and inputs that earlier ones use (Gram-Schmidt), so that it neither "
        "writes nor reads there; the first stays as it is. Default %(default)s",
    )
    merge.add_argument(
        "--rank",
        type=int,
        metavar="R",
        help="keep the R strongest directions of each module (truncated SVD); default: all",
    )
    merge.add_argument(
        "--dtype",
        default="float32",
        choices=DTYPES,
        help="of the written factors; bfloat16 halves the file and rounds; default %(default)s",
    )
    merge.add_argument(
        "--honour-alpha",
        action="store_true",
        help="scale by alpha/rank in official-format files too; the official loader ignores alpha "
        "there (other formats always use it)",
    )
    merge.add_argument("--force", action="store_true", help="replace an existing file")
    summary = "explain a LoRA file"
    info = actions.add_parser("info", help=summary, description=summary, allow_abbrev=False)
    info.add_argument("path", type=Path, help="a LoRA file, or a folder with one")
    info.add_argument(
        "--bundle", type=Path, metavar="DIR", help="also say which modules this bundle lacks"
    )
    for command in (merge, info):
        command.add_argument("--json", action="store_true", help="print one JSON document")


def run(options: argparse.Namespace) -> int:
    if options.action == "merge":
        report = merge(options)
        text = (
            f"{report['output']}: {report['modules']} modules, rank "
            f"{', '.join(report['ranks'])}, {report['method']} of {len(options.loras)} LoRAs"
        )
    else:
        report = info(options)
        text = "\n".join(f"{name.replace('_', ' '):34}{_value(v)}" for name, v in report.items())
    if options.json:
        print_json(report)
    else:
        print(text)
    return 0


def merge(options: argparse.Namespace) -> dict[str, Any]:
    """Check the target, then merge."""
    loras = [parse_lora(text) for text in options.loras]
    output: Path = options.output
    if output.suffix != ".safetensors":
        raise OptionError(f"cannot write {output}: the name of a LoRA ends in .safetensors.")
    if not output.absolute().parent.is_dir():
        raise OptionError(f"cannot write {output}: its folder does not exist; create it first.")
    if output.exists() and not options.force:
        raise OptionError(f"{output} exists; pass --force to replace it.")
    if output.exists() and any(output.samefile(find_lora(x.path)) for x in loras):
        raise OptionError(f"cannot write {output}: it is one of the files to merge.")
    merged = merge_loras(
        loras,
        output,
        method=options.method,
        rank=options.rank,
        dtype=options.dtype,
        honour_alpha=options.honour_alpha,
    )
    counts = Counter(merged.ranks.values())
    return {
        "output": str(merged.path),
        "bytes": merged.path.stat().st_size,
        "method": options.method,
        "modules": len(merged.ranks),
        "ranks": {str(rank): n for rank, n in sorted(counts.items())},
    }


def info(options: argparse.Namespace) -> dict[str, Any]:
    """What the file says, and what a bundle would do with it."""
    file = open_lora(options.path)
    report: dict[str, Any] = {"file": str(file.path), **describe_lora(file)}
    if options.bundle is not None:
        adapter = open_bundle(options.bundle).match_lora(file)
        report["modules_that_the_bundle_has"] = len(adapter.pairs)
        report["modules_that_it_lacks"] = list(adapter.skipped)
    report["metadata"] = short_metadata(file)
    return report


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return _printable(", ".join(f"{k}={v}" for k, v in value.items())) or "none"
    if isinstance(value, list):
        more = f" and {len(value) - 10} more" if len(value) > 10 else ""
        return _printable(", ".join(map(str, value[:10])) + more) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _printable(str(value))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
