"""`ltx2rt build`: official checkpoint files to a bundle."""

from __future__ import annotations

import argparse
import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any

from ltx2rt.bundle.host_plan import warn_of_memory
from ltx2rt.bundle.manifest import BuildInputs, Manifest
from ltx2rt.bundle.targets import DEFAULT_RTX_TARGETS, DEFAULT_SHAPES, RTX_TARGETS
from ltx2rt.cli.common import export_module, parse_lora, print_json
from ltx2rt.cli.progress import add_progress_flags, printer_of
from ltx2rt.errors import OptionError
from ltx2rt.hub.reference import local_path
from ltx2rt.lora.files import Lora
from ltx2rt.progress import Job
from ltx2rt.weights.precision import DEFAULT_PRECISION, PRECISIONS, TEXT_PRECISIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group(
        "model files", "paths, or what `ltx2rt pull` fetched: OWNER/NAME[@REVISION][:FILE]"
    )
    files.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="FILE",
        help="single-file checkpoint, the transformer of a split set, or a folder of diffusers or "
        "mlx-video",
    )
    files.add_argument(
        "--gemma",
        type=Path,
        metavar="DIR",
        help="folder of the Gemma 3 text encoder (config.json, tokenizer.json, *.safetensors), or "
        "a single file of it; Gemma 4 as GGUF",
    )
    files.add_argument(
        "--spatial-upsampler",
        "--upsampler",
        type=Path,
        metavar="FILE",
        help="latent upsampler; the two-stage pipelines need it",
    )
    files.add_argument("--temporal-upsampler", type=Path, metavar="FILE")
    files.add_argument(
        "--video-vae", type=Path, metavar="FILE", help="replaces the checkpoint's video VAE"
    )
    files.add_argument(
        "--audio-vae",
        type=Path,
        metavar="FILE",
        action="append",
        help="audio VAE and vocoder of a split set; again for each part that is a file of its own",
    )
    files.add_argument(
        "--text-encoder", type=Path, metavar="FILE", help="text encoder of a split set"
    )
    files.add_argument(
        "--duration-head",
        type=Path,
        metavar="FILE",
        help="predicts the clip's length from the prompt (LTX-2.5)",
    )
    files.add_argument(
        "--lora",
        "--distilled-lora",
        action="append",
        default=[],
        type=parse_lora,
        metavar="FILE[:STRENGTH]",
        help="fuse a LoRA (repeatable; strength 1 if omitted)",
    )
    target = parser.add_argument_group("target")
    target.add_argument(
        "--for",
        dest="card",
        metavar="CARD",
        help="choose backend and target: cpu, this (the GPU of this machine), rtx4090, rtx5090, "
        "h100, ...",
    )
    target.add_argument(
        "--backend",
        metavar="B",
        help="onnxruntime (default), tensorrt-rtx (needs no GPU here) or tensorrt (builds for the "
        "GPU of this machine)",
    )
    target.add_argument(
        "--precision",
        default="auto",
        metavar="P",
        help=f"auto (default: {DEFAULT_PRECISION} on a CPU; on a GPU the checkpoint's own, else "
        "16 bits), "
        f"{', '.join(PRECISIONS)}",
    )
    target.add_argument(
        "--text-precision",
        metavar="P",
        help="of the text encoder's layers, which are nearly all of its weights: "
        f"{', '.join(TEXT_PRECISIONS)} (default: 16 or 32 bits, as --precision has them)",
    )
    target.add_argument(
        "--target",
        type=_names,
        default=(),
        metavar="SM,...",
        help=f"GPU architectures, all in one engine (TensorRT-RTX: {', '.join(RTX_TARGETS)}; "
        f"default {','.join(DEFAULT_RTX_TARGETS)})",
    )
    target.add_argument(
        "--shapes",
        type=_names,
        default=DEFAULT_SHAPES,
        metavar="WxHxN,...",
        help=f"clips that engines must take, with their half-size first stage (default "
        f"{','.join(DEFAULT_SHAPES)})",
    )
    target.add_argument(
        "--max-batch",
        type=int,
        default=1,
        metavar="N",
        help="guidance passes that may run together (default 1)",
    )
    target.add_argument(
        "--components", type=_names, default=(), metavar="A,...", help="build only these"
    )
    target.add_argument(
        "--weights",
        default="input",
        metavar="MODE",
        help="input (default): engines take weights by name; constant: weights are inside engines, "
        "of which the transformer block has one a layer (for GPUs: no LoRA at run time, twice the "
        "disk; ONNX Runtime: for CPUs only, made when a clip needs them)",
    )
    target.add_argument(
        "--plain-layers",
        type=_numbers,
        metavar="N,...",
        help="transformer blocks that a quantising precision leaves in 16 bits",
    )
    target.add_argument(
        "--lora-inputs",
        action="store_true",
        help="the block takes LoRAs as low-rank inputs: switching is free, a step costs more",
    )
    expert = parser.add_argument_group("engine builder")
    for name, text in (
        ("optimization-level", "effort of the builder, 0 to 5"),
        ("workspace-mib", "scratch memory that kernels may ask for"),
        ("aux-streams", "streams that an engine may use beside its own"),
        ("decoder-mib", "memory for a tile of the LTX-2.5 diffusion decoder (default 24576)"),
    ):
        expert.add_argument(f"--{name}", type=int, metavar="N", help=text)
    expert.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="kernel timings to reuse (TensorRT)"
    )
    expert.add_argument(
        "--hardware-compatible",
        action="store_true",
        help="engines also run on other GPUs from Ampere on (TensorRT)",
    )
    expert.add_argument(
        "--version-compatible",
        action="store_true",
        help="engines also load in other versions (TensorRT)",
    )
    expert.add_argument(
        "--plugin-modules",
        type=_names,
        default=(),
        metavar="M,...",
        help="Python modules that register plugins (TensorRT)",
    )
    expert.add_argument(
        "--custom-ops",
        default="auto",
        metavar="MODE",
        help="our own kernels: auto (default; where a benchmark showed them faster: nowhere yet), "
        "on, off",
    )
    expert.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where built engines are kept (default: LTX2RT_CACHE, else the user's cache folder)",
    )
    target.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="processes that trace graphs at once, where none come along for a model; each takes "
        "about 1 GB (default 1)",
    )
    target.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be built, its memory and the card it fits; build nothing",
    )
    target.add_argument("--verbose", action="store_true", help="--dry-run lists every graph")
    target.add_argument(
        "--copy-weights",
        action="store_true",
        help="copy the weights into the bundle (default: point at your files)",
    )
    target.add_argument("--force", action="store_true", help="replace an existing bundle")
    target.add_argument("-o", "--output", type=Path, metavar="BUNDLE")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_progress_flags(parser)


def _names(text: str) -> tuple[str, ...]:
    """A list separated by commas."""
    return tuple(n for n in (part.strip() for part in text.split(",")) if n)


def _numbers(text: str) -> tuple[int, ...]:
    names = _names(text)
    if not all(n.isascii() and n.isdigit() for n in names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of layers, e.g. 0,43,47")
    return tuple(int(n) for n in names)


def inputs_of(options: argparse.Namespace) -> BuildInputs:
    """The named files, with absolute paths; names on the model hub as their files in its cache."""
    names = (
        "checkpoint",
        "gemma",
        "spatial_upsampler",
        "temporal_upsampler",
        "video_vae",
        "text_encoder",
        "duration_head",
    )
    found = {n: local_path(p) for n in names if (p := getattr(options, n)) is not None}
    if absent := {n: p for n, p in found.items() if not os.path.lexists(p)}:
        raise OptionError(
            "files of the model are missing",
            [f"--{n.replace('_', '-')} {p}: No such file" for n, p in absent.items()],
            advice="Check the paths; `ltx2rt pull` fetches official files by name.",
        )
    paths = {n: str(p.absolute()) for n, p in found.items()}
    loras = tuple(
        Lora(path=str(local_path(x.path).absolute()), strength=x.strength) for x in options.lora
    )
    audio = [str(local_path(p).absolute()) for p in options.audio_vae or ()]
    if audio:
        paths["audio_vae"] = audio[0]
    return BuildInputs(loras=loras, audio_parts=tuple(audio[1:]), **paths)


def run(options: argparse.Namespace) -> int:
    export_module("bundle")  # what is not installed is said first
    if options.dry_run:
        return _dry_run(options)
    if options.output is None:
        raise OptionError("no bundle was named; pass -o BUNDLE.")
    manifest = build(inputs_of(options), options.output, options)
    if options.json:
        print_json(
            {
                "bundle": str(options.output),
                "id": manifest.bundle_id,
                "generation": manifest.model.generation,
                "components": sorted(manifest.components),
                "engines": {
                    e.file: {"bytes": e.bytes, "targets": e.targets, "precision": e.precision}
                    for entry in manifest.components.values()
                    for e in entry.engines
                },
            }
        )
    else:
        print(
            f"{options.output}: bundle {manifest.bundle_id}, {manifest.model.generation}, "
            f"{len(manifest.components)} components"
        )
    return 0


def build(inputs: BuildInputs, output: Path, options: argparse.Namespace) -> Manifest:
    """Build a bundle; the demo takes this very path."""
    if inputs.checkpoint is None:
        raise OptionError("no checkpoint was named; pass --checkpoint FILE.")
    export = export_module("bundle")
    export.check_target(output, force=options.force)
    files, config = open_and_choose(inputs, options)
    export_module("engines.plan").check_card(files, inputs, config)
    manifest: Manifest = export.build_bundle(
        files, inputs, output, config, Job(printer_of(options))
    )
    warn_of_memory(manifest)
    return manifest


def open_and_choose(inputs: BuildInputs, options: argparse.Namespace) -> tuple[Any, Any]:
    """The model's files, and the `BuildConfig` of the flags; those are checked first."""
    config = config_of(options)
    files = export_module("bundle").open_inputs(inputs, config.components)
    for said in files.warnings:
        warnings.warn(said, stacklevel=2)
    warn_of_upsampler(inputs, config.components)
    return files, config if options.precision != "auto" else config_of(options, files)


def warn_of_upsampler(inputs: BuildInputs, components: tuple[str, ...]) -> None:
    """Say before a build that the pipeline of `ltx2rt generate` will not run, and which will."""
    if inputs.spatial_upsampler is not None or components:
        return
    from ltx2rt.names import SPATIAL_UPSAMPLER
    from ltx2rt.pipelines.catalog import PIPELINES, catalog_class

    without = [n for n in PIPELINES if SPATIAL_UPSAMPLER not in catalog_class(n).requires]
    warnings.warn(
        "no --spatial-upsampler FILE is given, so the pipelines of two stages will not run, among "
        "them distilled, which `ltx2rt generate` takes by itself; these will run: "
        f"{', '.join(without)}.",
        stacklevel=2,
    )


def config_of(options: argparse.Namespace, files: Any = None) -> Any:
    """The `BuildConfig` that the flags ask for; every flag is a field of that name.

    Args:
        files: the model's, which decide what `--precision auto` means; None: not opened yet.
    """
    choose, config = export_module("choose"), export_module("build_config").BuildConfig
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(config)}
    chosen = choose.options_for(options.card) if options.card is not None else {}
    values |= {name: value for name, value in chosen.items() if not values[name]}
    values["backend"] = values["backend"] or config().backend
    if values["precision"] == "auto":
        values["precision"] = choose.chosen_precision(values, files)
    return config(**values)


def _dry_run(options: argparse.Namespace) -> int:
    inputs = inputs_of(options)
    files, config = open_and_choose(inputs, options)
    plan = export_module("engines.plan")
    report = plan.plan_build(files, inputs, config)
    if options.json:
        print_json(report)
    else:
        print(export_module("engines.plan_text").plan_text(report, verbose=options.verbose))
    return 0
