"""`ltx2rt build`: official checkpoint files to a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

from ltx2rt.cli.common import ProgressPrinter, export_module, parse_lora, print_json
from ltx2rt.errors import OptionError
from ltx2rt.manifest import BuildInputs, Lora, Manifest
from ltx2rt.progress import Job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("model files")
    files.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="FILE",
        help="single-file checkpoint, or the transformer file of a split set",
    )
    files.add_argument(
        "--gemma",
        type=Path,
        metavar="DIR",
        help="folder of the Gemma 3 text encoder (config.json, tokenizer.json, *.safetensors)",
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
        "--audio-vae", type=Path, metavar="FILE", help="audio VAE and vocoder of a split set"
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
    target.add_argument("--backend", default="onnxruntime", choices=("onnxruntime",))
    target.add_argument("--precision", default="fp32", choices=("fp32",))
    target.add_argument(
        "--copy-weights",
        action="store_true",
        help="copy the weights into the bundle (default: point at your files)",
    )
    target.add_argument("--force", action="store_true", help="replace an existing bundle")
    target.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def inputs_of(options: argparse.Namespace) -> BuildInputs:
    """The named files, with absolute paths."""
    names = (
        "checkpoint",
        "gemma",
        "spatial_upsampler",
        "temporal_upsampler",
        "video_vae",
        "audio_vae",
        "text_encoder",
        "duration_head",
    )
    paths = {n: str(p.absolute()) for n in names if (p := getattr(options, n)) is not None}
    loras = tuple(
        Lora(path=str(Path(x.path).absolute()), strength=x.strength) for x in options.lora
    )
    return BuildInputs(loras=loras, **paths)


def run(options: argparse.Namespace) -> int:
    manifest = build(inputs_of(options), options.output, options)
    if options.json:
        print_json(
            {
                "bundle": str(options.output),
                "id": manifest.bundle_id,
                "generation": manifest.model.generation,
                "components": sorted(manifest.components),
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
    config = export.BuildConfig(
        backend=options.backend,
        precision=options.precision,
        copy_weights=options.copy_weights,
        force=options.force,
    )
    export.check_target(output, force=config.force)
    files = export.open_inputs(inputs)
    manifest: Manifest = export.build_bundle(
        files, inputs, output, config, Job(ProgressPrinter(quiet=options.quiet))
    )
    return manifest
