"""Building a bundle from Python: what `ltx2rt build` does, as one function."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.bundle.host_plan import warn_of_memory
from ltx2rt.bundle.manifest import BuildInputs
from ltx2rt.bundle.targets import DEFAULT_SHAPES
from ltx2rt.lora.files import Lora
from ltx2rt.progress import Job, ProgressCallback

StrPath = str | os.PathLike[str]


def build(
    output: StrPath,
    *,
    checkpoint: StrPath,
    gemma: StrPath | None = None,
    spatial_upsampler: StrPath | None = None,
    temporal_upsampler: StrPath | None = None,
    video_vae: StrPath | None = None,
    audio_vae: StrPath | Sequence[StrPath] | None = None,
    text_encoder: StrPath | None = None,
    duration_head: StrPath | None = None,
    loras: Sequence[Lora] = (),
    card: str | None = None,
    backend: str | None = None,
    precision: str = "auto",
    text_precision: str | None = None,
    target: Sequence[str] = (),
    shapes: Sequence[str] = DEFAULT_SHAPES,
    components: Sequence[str] = (),
    copy_weights: bool = False,
    force: bool = False,
    cache_dir: StrPath | None = None,
    callback: ProgressCallback | None = None,
) -> Bundle:
    """Build a bundle and open it. Needs the extra `build`; models that are not among the released
    ones need `export`.

    ```python
    bundle = ltx2rt.build("ltx23.bundle", checkpoint="ltx-2.3-22b-distilled-1.1.safetensors",
                          gemma="gemma-3-12b-it", card="rtx4090")
    ```

    Args:
        output: the folder of the bundle.
        checkpoint, gemma, spatial_upsampler, temporal_upsampler, video_vae, audio_vae,
            text_encoder, duration_head: the model's files; see `ltx2rt build --help`. The audio VAE
            may be several files, where its parts lie apart.
        loras: merged into the weights.
        card: chooses backend and target: `cpu`, `this` (the GPU of this machine), `rtx4090`, ...
        backend, precision, text_precision, target, shapes, components, copy_weights, force,
            cache_dir: see `ltx2rt build --help`.
        callback: gets a `Progress` after every step.

    Raises:
        CheckpointError, UnsupportedError: the files do not fit; nothing is written.
        OptionError, ShapeError: an option is not allowed.
        ModuleNotFoundError: a package of the extra is not installed.
    """
    export, choose = _export("bundle"), _export("choose")
    make_config = _export("build_config").BuildConfig
    if audio_vae is None or isinstance(audio_vae, str | os.PathLike):
        audio_files = [audio_vae] if audio_vae is not None else []
    else:
        audio_files = list(audio_vae)
    places = {
        "checkpoint": checkpoint,
        "gemma": gemma,
        "spatial_upsampler": spatial_upsampler,
        "temporal_upsampler": temporal_upsampler,
        "video_vae": video_vae,
        "audio_vae": audio_files[0] if audio_files else None,
        "text_encoder": text_encoder,
        "duration_head": duration_head,
    }
    inputs = BuildInputs(
        audio_parts=tuple(str(Path(p).absolute()) for p in audio_files[1:]),
        loras=tuple(Lora(path=str(Path(x.path).absolute()), strength=x.strength) for x in loras),
        **{name: str(Path(p).absolute()) for name, p in places.items() if p is not None},
    )
    values: dict[str, Any] = {"backend": backend, "target": tuple(target)}
    chosen = choose.options_for(card) if card is not None else {}
    values |= {name: value for name, value in chosen.items() if not values[name]}
    values["backend"] = values["backend"] or make_config().backend
    files = export.open_inputs(inputs, components)
    config = make_config(
        **values,
        precision=choose.chosen_precision(values, files) if precision == "auto" else precision,
        text_precision=text_precision,
        shapes=tuple(shapes),
        components=tuple(components),
        copy_weights=copy_weights,
        force=force,
        cache_dir=None if cache_dir is None else Path(cache_dir),
    )
    export.check_target(Path(output), force=force)
    _export("engines.plan").check_card(files, inputs, config)
    warn_of_memory(export.build_bundle(files, inputs, Path(output), config, Job(callback)))
    return open_bundle(output)


def _export(name: str) -> ModuleType:
    """A module of `ltx2rt_export`: what runs bundles does not import what builds them."""
    return importlib.import_module(f"ltx2rt_export.{name}")
