"""`ltx2rt lora merge|info`: combine LoRA files without a model, and explain one."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.cli.common import parse_lora, print_json
from ltx2rt.errors import OptionError
from ltx2rt.lora.combine import DTYPES, METHODS, MergeOptions, merge_loras
from ltx2rt.lora.describe import describe_lora, short_metadata
from ltx2rt.lora.files import find_lora, open_lora
from ltx2rt.lora.generation import misfit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "`ltx2rt lora merge --help` and `ltx2rt lora info --help` explain each; both take --json."
    )
    actions = parser.add_subparsers(dest="action", metavar="{merge,info}", required=True)
    summary = (
        "merge adapters of any kind into one file of plain LoRAs and differences, in the official "
        "format, at strength 1; one alone is converted"
    )
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
        "writes nor reads there; the first stays as it is. ema: the average of files that one "
        "training left behind, the oldest first. Default %(default)s",
    )
    merge.add_argument(
        "--rank",
        type=int,
        metavar="R",
        help="keep the R strongest directions of each weight (truncated SVD); differences of "
        "weights become LoRAs too; default: all",
    )
    merge.add_argument(
        "--dtype",
        default="float32",
        choices=DTYPES,
        help="of what is written; bfloat16 halves the file and rounds; auto: the files' widest; "
        "default %(default)s",
    )
    merge.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="the model, for kinds whose difference depends on it (DoRA, OFT, replaced tensors)",
    )
    merge.add_argument(
        "--ignore-alpha",
        action="store_true",
        help="take every update at full strength whatever its alpha says, as the official loader "
        "does; ComfyUI, diffusers and trainers apply alpha/rank",
    )
    merge.add_argument(
        "--emit-alpha", action="store_true", help="also write an alpha, equal to the rank"
    )
    merge.add_argument(
        "--keep-first",
        metavar="REGEX",
        help="of modules whose name this is found in, the first file that has one counts alone",
    )
    merge.add_argument(
        "--orthogonal-fraction",
        type=float,
        metavar="X",
        help="which part of the earlier directions --method orthogonal takes out, the strongest "
        "first, 0 to 1; default 1",
    )
    for flag, text in {
        "--ema-decay": "with --method ema, file by file the average so far counts this much; "
        "default 0.95",
        "--ema-last-decay": "the decay of the last file, to which that of the first goes in equal "
        "steps",
        "--ema-sigma": "the relative width of the average instead, below 0.288",
    }.items():
        merge.add_argument(flag, type=float, metavar="X", help=text)
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
        ranks = f", rank {', '.join(report['ranks'])}" if report["ranks"] else ""
        whole = f", {n} differences" if (n := report["differences"]) else ""
        text = (
            f"{report['output']}: {report['modules']} modules{ranks}{whole}, {report['method']} of "
            f"{len(options.loras)} LoRAs"
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
    fraction = options.orthogonal_fraction
    averages = options.ema_decay, options.ema_last_decay, options.ema_sigma
    if options.method != "ema" and averages != (None, None, None):
        raise OptionError("--ema-decay, --ema-last-decay and --ema-sigma go with --method ema.")
    how = MergeOptions(
        method=options.method,
        rank=options.rank,
        dtype=options.dtype,
        ignore_alpha=options.ignore_alpha,
        emit_alpha=options.emit_alpha,
        keep_first=options.keep_first,
        orthogonal_fraction=1.0 if fraction is None else fraction,
        ema_decay=0.95 if options.ema_decay is None else options.ema_decay,
        ema_last_decay=options.ema_last_decay,
        ema_sigma=options.ema_sigma,
    )
    base = None if options.bundle is None else open_bundle(options.bundle).base_tensor
    merged = merge_loras(loras, output, how, base)
    counts = Counter(merged.ranks.values())
    return {
        "output": str(merged.path),
        "bytes": merged.path.stat().st_size,
        "method": options.method,
        "modules": len(merged.ranks),
        "ranks": {str(rank): n for rank, n in sorted(counts.items())},
        "differences": len(merged.differences),
    }


def info(options: argparse.Namespace) -> dict[str, Any]:
    """What the file says, and what a bundle would do with it."""
    file = open_lora(options.path)
    report: dict[str, Any] = {"file": str(file.path), **describe_lora(file)}
    if options.bundle is not None:
        bundle = open_bundle(options.bundle)
        adapter = bundle.match_lora(file)
        report["tensors_that_the_bundle_has"] = len(adapter.updates)
        report["modules_that_it_lacks"] = list(adapter.skipped)
        if warning := misfit(file, adapter.keys, bundle.model.generation):
            report["warning"] = warning
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
