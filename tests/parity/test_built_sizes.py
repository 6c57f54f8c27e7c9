"""Sizes that engines were not built for are refused before any work, with what would do."""

from __future__ import annotations

import dataclasses
import shlex
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ltx2rt
from ltx2rt.bundle.bundle import Bundle
from ltx2rt.bundle.manifest import EngineEntry
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import ShapeError
from ltx2rt.latents.shapes import VideoScaleFactors
from ltx2rt.pipelines.base import Pipeline
from ltx2rt.pipelines.built_sizes import made_sizes
from ltx2rt.pipelines.clip_sizes import clips_of
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt_export.engines.profile_request import ProfileRequest
from ltx2rt_export.engines.profiles import component_buckets
from ltx2rt_export.engines.shapes import parse_shapes
from tests.unit.test_command_defaults import asked


def built_for(folder: Path, *shapes: str, max_batch: int = 1) -> Bundle:
    """The bundle, as if it had engines for these clips."""
    bundle = ltx2rt.open_bundle(folder)
    manifest = bundle.manifest
    options = {name: entry.options for name, entry in manifest.components.items()}
    factors = VideoScaleFactors(manifest.model.time_scale, *(manifest.model.spatial_scale,) * 2)
    request = ProfileRequest(
        shapes=parse_shapes(shapes, factors), max_batch=max_batch, factors=factors, options=options
    )
    components = {}
    for name, entry in manifest.components.items():
        buckets = component_buckets(name, entry.spec(name).inputs, request)
        engine = EngineEntry(
            file="", sha256="", bytes=0, backend="tensorrt-rtx", backend_version="1.7.1",
            targets=("sm89",), precision="bf16", weights="input", version_compatible=False,
            buckets=buckets,
        )  # fmt: skip
        components[name] = dataclasses.replace(entry, engines=(engine,))
    flags = f"--backend tensorrt-rtx --shapes {','.join(shapes)}"
    made = dataclasses.replace(manifest, components=components, build_flags=flags)
    return Bundle(folder, made, ())


def accept(pipe: Pipeline, **fields: Any) -> None:
    pipe.accept(pipe.make_request(None, None, None, {"prompt": "a bell", **fields}))


def refused(pipe: Pipeline, **fields: Any) -> str:
    with pytest.raises(ShapeError) as error:
        accept(pipe, **fields)
    return str(error.value)


@pytest.fixture
def wide(demo_bundle: Path) -> Bundle:
    return built_for(demo_bundle, "192x128x25")


def test_what_a_bundle_makes_is_listed_without_a_warning(wide: Bundle) -> None:
    """The demo's model is distilled: nobody asked to sample it as a full one."""
    assert wide.model.is_distilled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = clips_of(wide)
    assert "192x128x25" in found["one stage"]


def test_the_length_of_a_built_clip_is_not_the_models(wide: Bundle, capsys: Any) -> None:
    with DistilledPipeline(wide) as pipe:
        config = asked().for_pipeline(pipe).request.config
    assert (config.width, config.height, config.num_frames) == (192, 128, 25)
    said = capsys.readouterr().err
    assert "192x128, 25 frames, for which this bundle was built" in said
    assert "as long as the model finds right" not in said


def test_relatives_of_the_built_clips_are_taken(wide: Bundle) -> None:
    for kind in (ltx2rt.DistilledPipeline, ltx2rt.OneStagePipeline):
        pipe = kind(wide)
        for height, width, frames in ((128, 192, 25), (192, 128, 25), (128, 128, 9), (64, 64, 1)):
            accept(pipe, height=height, width=width, num_frames=frames)


def test_the_size_where_none_is_asked_for(demo_bundle: Path, wide: Bundle) -> None:
    """The pipeline's own, or what the engines were built for."""

    def size(bundle: Bundle, **fields: Any) -> tuple[int, int, Any]:
        pipe = ltx2rt.DistilledPipeline(bundle)
        config = pipe.make_request(None, None, None, {"prompt": "a", **fields}).config
        return config.width, config.height, config.num_frames

    assert size(wide) == (192, 128, 25)
    accept(ltx2rt.DistilledPipeline(wide))
    assert size(wide, height=64, width=64) == (64, 64, 121)
    assert size(wide, num_frames=9) == (192, 128, 9)
    assert size(ltx2rt.open_bundle(demo_bundle)) == (1536, 1024, 121)
    assert size(built_for(demo_bundle, "1536x1024x121")) == (1536, 1024, 121)


def test_larger_clips_are_refused_with_the_nearest_and_the_build(
    demo_bundle: Path, wide: Bundle
) -> None:
    pipe = ltx2rt.DistilledPipeline(wide)
    text = refused(pipe, height=128, width=256, num_frames=33)
    assert "transformer_block: the nearest is 192x128x25: Tv=" not in text  # room of conditioning
    assert "spatial_upsampler: the nearest is 96x64x25: Fl=5 is not in 1..4" in text
    assert "The nearest that works is height=128, width=192, num_frames=25" in text
    flags = shlex.split(text.partition("build again: ")[2])
    shapes = flags[flags.index("--shapes") + 1]
    assert shapes == "192x128x25,256x128x33"
    again = ltx2rt.DistilledPipeline(built_for(demo_bundle, *shapes.split(",")))
    accept(again, height=128, width=256, num_frames=33)


def test_a_portrait_is_offered_a_portrait(wide: Bundle) -> None:
    pipe = ltx2rt.OneStagePipeline(wide)
    text = refused(pipe, height=384, width=192, num_frames=25)
    assert "The nearest that works is height=192, width=128, num_frames=25" in text


def test_what_conditioning_appends_counts(demo_bundle: Path, wide: Bundle, tmp_path: Path) -> None:
    images = []
    for number in range(14):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((128, 192, 3), number, np.uint8)).save(path)
        images.append(ltx2rt.ImageCondition(path=path, frame=number + 1))
    fields = {"height": 128, "width": 192, "num_frames": 25, "images": tuple(images)}
    accept(ltx2rt.OneStagePipeline(wide), **{**fields, "images": tuple(images[:12])})
    text = refused(ltx2rt.OneStagePipeline(wide), **fields)
    assert "transformer_block: the nearest is 192x128x25: Tv=432 is not in 1..384" in text
    flags = shlex.split(text.partition("build again: ")[2])
    shapes = flags[flags.index("--shapes") + 1].split(",")
    accept(ltx2rt.OneStagePipeline(built_for(demo_bundle, *shapes)), **fields)


def test_sound_alone(demo_bundle: Path, wide: Bundle) -> None:
    text = refused(ltx2rt.TextToAudioPipeline(wide), num_frames=100, frame_rate=8.0)
    assert "audio_decoder: the nearest is 192x128x25: Ta=312 is not in 1..52" in text
    flags = shlex.split(text.partition("build again: ")[2])
    shapes = flags[flags.index("--shapes") + 1].split(",")
    again = ltx2rt.TextToAudioPipeline(built_for(demo_bundle, *shapes))
    accept(again, num_frames=100, frame_rate=8.0)


def test_passes_that_run_together(demo_bundle: Path, wide: Bundle) -> None:
    runtime = RuntimeConfig(max_batch_size=4)
    fields = {"height": 128, "width": 192, "num_frames": 25}
    text = refused(ltx2rt.OneStagePipeline(wide, runtime), **fields)
    assert "B=4 is not in 1..1" in text
    assert text.endswith("--shapes 192x128x25,192x128x25 --max-batch 4")
    built = built_for(demo_bundle, "192x128x25", max_batch=4)
    accept(ltx2rt.OneStagePipeline(built, runtime), **fields)


def test_tiles_that_were_not_built_name_the_automatic_ones(demo_bundle: Path) -> None:
    pipe = ltx2rt.OneStagePipeline(built_for(demo_bundle, "1536x64x25"))
    text = refused(pipe, height=64, width=1536, num_frames=25, tiling="none")
    assert "video_decoder" in text
    assert "It works with tiling=auto." in text


def test_sizes_of_a_bundle(wide: Bundle, demo_bundle: Path) -> None:
    everything = made_sizes(wide, lambda size: True)
    assert everything[:3] == ["192x128x25", "128x192x25", "128x128x25"]
    assert made_sizes(ltx2rt.open_bundle(demo_bundle), lambda size: True) == []
