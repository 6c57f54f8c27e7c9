"""The plan of a build for people: six lines, and the rest where it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ltx2rt.backends.tensorrt_api import APIS
from ltx2rt.names import TRANSFORMER_BLOCKS
from ltx2rt.weights.precision import PRECISIONS

#: what the letters of buckets stand for
LETTERS = (
    "  letters: B passes at once, S text tokens, Tv / Ta tokens of video / sound, Uv / Ua distinct "
    "noise levels of their tokens;\n"
    "  Fl, Hl, Wl frames, rows and columns of latents, Fs, Hs, Ws of features, F, H, W of pixels, "
    "M, N mel frames and samples; (likely) after a range"
)


def plan_text(report: Mapping[str, Any], *, verbose: bool = False) -> str:
    """The lines of a plan (`plan.plan_build`).

    Args:
        verbose: also every graph, with the sizes that its engine takes.
    """
    version = report["backend_version"]
    on_gpu = report["backend"] in APIS
    where = f" for {', '.join(report['targets'])}" if report["targets"] else ""
    known = f" {version}" if version else " (not installed)" if on_gpu else ""
    lines = [
        f"{report['backend']}{known}, {report['precision']}{_share(report)}{where}; nothing was "
        "built",
        f"  fits: {_fits(report)}",
        "  at once: "
        + ", ".join(
            f"{stage} {gib(size)}{_least(report, stage)}"
            for stage, size in report["stage_bytes"].items()
        ),
        f"  host memory: {_host(report)}",
        f"  disk: about {gib(report['disk_bytes'])} besides your files, which stay where they are",
        f"  time: {_time(report)}",
    ]
    if verbose:
        lines += _graphs(report)
        lines += [LETTERS] if on_gpu else []
    else:
        lines.append("  --verbose lists every graph")
    return "\n".join(lines)


def _share(report: Mapping[str, Any]) -> str:
    """How much of the transformer a quantising precision makes smaller: NVFP4 of plain weights
    leaves the linears of the sound in 16 bits, and so takes about what FP8 does.
    """
    parts = [p for n, p in report["components"].items() if n in TRANSFORMER_BLOCKS]
    if not any(part["quantized_share"] for part in parts):
        return ""
    layers = sum(part["layers"] for part in parts)
    share = sum(part["quantized_share"] * part["layers"] for part in parts) / layers
    return f" ({share:.0%} of the numbers in the transformer's layers, 16 bits for the rest)"


def _fits(report: Mapping[str, Any]) -> str:
    whole, streaming = report["card"], report["streaming_card"]
    if report["backend"] not in APIS:
        parts = report["components"]
        if any(parts[n]["weights"] == "constant" for n in TRANSFORMER_BLOCKS if n in parts):
            return "a CPU"  # sessions of layers: see `Loader`
        gpu = "an NVIDIA GPU through ONNX Runtime"
        return f"a CPU, or {gpu}" if PRECISIONS[report["precision"]].on_cpu else gpu
    if not report["targets"]:
        return "not known without --target or --for"
    if not streaming:
        return "no card of these targets: take a smaller --precision or --shapes"
    smaller = f"; {streaming} and larger with layers uploaded at every step"
    if not whole:
        return f"no card as a whole{smaller}"
    return f"{whole} and larger{smaller if streaming != whole else ''}"


def _least(report: Mapping[str, Any], stage: str) -> str:
    """What a stage takes of a card with layers uploaded at every step."""
    least = report["least_stage_bytes"][stage]
    if report["backend"] not in APIS or least == report["stage_bytes"][stage]:
        return ""
    return f" ({gib(least)} with layers uploaded)"


def _host(report: Mapping[str, Any]) -> str:
    host = report["host"]
    if host is None:
        return "little where all layers fit the card; else the layers that do not"
    stages, here = dict(report["stage_bytes"]), host["memory_bytes"]
    text = f"about {gib(max(stages.values()))} for the largest stage; this machine has {gib(here)}"
    kept, layers = host["kept_layers"], host["layers"]
    if kept is None:
        return f"{text}: TOO LITTLE for one layer of the transformer and what is held beside it"
    stages.pop("denoise")
    if large := [stage for stage, size in stages.items() if size > here]:
        return f"{text}: TOO LITTLE to {' and to '.join(large)}"
    if kept == layers:
        return text
    return (
        f"{text}: {kept} of the {layers} layers of the transformer stay, the others are read from "
        "the files at every use"
    )


def _time(report: Mapping[str, Any]) -> str:
    if report["backend"] not in APIS:
        return "seconds for the graphs of released models, a minute or more for others"
    kind = "seconds each" if APIS[report["backend"]].names_targets else "minutes each"
    return f"{report['engines']} engines, {kind}; a second build takes them from the cache"


def _graphs(report: Mapping[str, Any]) -> Iterator[str]:
    for name, part in report["components"].items():
        layers = f" in {part['layers']} layers" if part["layers"] > 1 else ""
        yield (
            f"  {name}: {part['precision']}, weights {gib(part['weight_bytes'])}{layers} as "
            f"{part['weights']}, activations about {gib(part['activation_bytes'])}"
        )
        yield from (f"    {bucket}" for bucket in part["buckets"])


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB"
