"""Buckets hold every size that pipelines ask for, and a request outside is told the nearest."""

from __future__ import annotations

import dataclasses
import math
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltx2rt.bundle.buckets import Bucket, choose_bucket, nearest_bucket, symbol_sizes, tensor_ranges
from ltx2rt.engine import TensorSpec
from ltx2rt.errors import InternalError, OptionError, ShapeError
from ltx2rt.latents.shapes import VIDEO_SCALE_FACTORS, AudioLatentShape
from ltx2rt.latents.tiling import TilingConfig
from ltx2rt.names import VIDEO_RGB
from ltx2rt_export.engines.profile_request import ProfileRequest
from ltx2rt_export.engines.profiles import component_buckets
from ltx2rt_export.engines.shapes import ClipShape, parse_shapes
from ltx2rt_export.engines.video_profiles import check_sides

OPTIONS = {
    "audio_decoder": {"mel_frames_per_latent": 4},
    "audio_encoder": {"mel_hop_length": 160, "mel_frames_per_latent": 4, "n_fft": 1024},
    "diffusion_features": {
        "scale_factors": {"time": 8, "height": 32, "width": 32},
        "latent_channels": 128,
        "patch_size": 4,
        "pixel_channels": 64,
        "border_patches": 2,
        "feature_channels": 64,
        "steps": 1,
        "prediction": "x0",
        "ghost_frames": 1,
        "min_latent_cells": [2, 4, 4],
        "feature_stride": [4, 4, 4],
        "min_feature_cells": [4, 6, 6],
        "halo_feature_cells": [2, 3, 3],
    },
}
LATENT = TensorSpec("video_latent", "float32", ("B", 128, "Fl", "Hl", "Wl"))
VIDEO = TensorSpec("video", "float32", ("B", 3, "F", "H", "W"))
TOKENS = TensorSpec("video_hidden", "bfloat16", ("B", "Tv", 4096))
MASK = TensorSpec("video_attention_bias", "bfloat16", ("B", 1, "1|Tv", "Tv"))
AUDIO = TensorSpec("audio_hidden", "bfloat16", ("B", "Ta", 2048))


def request(*shapes: str, max_batch: int = 1) -> ProfileRequest:
    return ProfileRequest(
        shapes=parse_shapes(shapes),
        max_batch=max_batch,
        factors=VIDEO_SCALE_FACTORS,
        options=OPTIONS,
    )


def test_transformer_takes_both_stages_with_room_for_conditioning() -> None:
    buckets = component_buckets("transformer_block", [TOKENS, MASK, AUDIO], request("768x512x121"))
    assert [b.name for b in buckets] == ["384x256x121", "768x512x121"]
    # stage 1: 16 frames of 12x8 cells, 8 keyframes and a reference as long as the clip beside them
    assert buckets[0].sizes["Tv"] == (1, 1536, 1536 + 8 * 96 + 1536)
    assert buckets[1].sizes["Tv"] == (1, 6144, 6144 + 8 * 384 + 6144)
    # 121 frames: 5.04 s at 24 frames a second; at 12 twice as long, and a reference beside it
    assert buckets[0].sizes["Ta"] == (1, 126, 2 * 252)
    assert buckets[0].sizes["B"] == (1, 1, 1)
    assert tensor_ranges(MASK.shape, buckets[1]) == (
        (1, 1, 1, 1),
        (1, 1, 1, 6144),
        (1, 1, 15360, 15360),
    )


def test_passes_that_run_together_take_no_token_mask() -> None:
    found = component_buckets("transformer_block", [TOKENS, MASK], request("64x64x9", max_batch=3))
    assert [b.name for b in found] == ["32x32x9", "32x32x9 batch 3", "64x64x9", "64x64x9 batch 3"]
    assert found[3].sizes["B"] == (2, 3, 3)
    assert tensor_ranges(MASK.shape, found[3])[2] == (3, 1, 1, 48)
    shapes = {"video_hidden": TOKENS.shape, "video_attention_bias": MASK.shape}
    plain = symbol_sizes(
        shapes, {"video_hidden": (3, 8, 4096), "video_attention_bias": (3, 1, 1, 8)}
    )
    assert choose_bucket("block", found, plain) == 3
    masked = symbol_sizes(
        shapes, {"video_hidden": (3, 8, 4096), "video_attention_bias": (3, 1, 8, 8)}
    )
    with pytest.raises(ShapeError, match=r"nearest is 64x64x9: B=3 is not in 1\.\.1"):
        choose_bucket("block", found, masked)


sides = st.integers(1, 34).map(lambda n: 64 * n)
clips = st.builds(ClipShape, sides, sides, st.integers(0, 32).map(lambda n: 8 * n + 1))


@settings(max_examples=60, deadline=None)
@given(clips)
def test_every_tile_of_the_automatic_tiling_has_a_bucket(clip: ClipShape) -> None:
    asked = request(clip.name)
    decoder = component_buckets("video_decoder", [LATENT], asked)
    for shape in asked.stages():
        frames, rows, columns = TilingConfig.auto().tiles(shape.cells())
        for f in frames:
            for h in rows:
                for w in columns:
                    cells = [t.source.stop - t.source.start for t in (f, h, w)]
                    sizes = dict(zip(("B", "Fl", "Hl", "Wl"), (1, *cells), strict=True))
                    choose_bucket("video_decoder", decoder, sizes)


@st.composite
def relatives(draw: st.DrawFn) -> tuple[ClipShape, ClipShape]:
    """A clip, and one of at most as many pixels and frames with no longer side."""
    clip = draw(clips)
    side, area = max(clip.width, clip.height) // 64, clip.width * clip.height // 64**2
    width = draw(st.integers(1, side))
    height = draw(st.integers(1, min(side, max(area // width, 1))))
    frames = 8 * draw(st.integers(0, (clip.num_frames - 1) // 8)) + 1
    return clip, ClipShape(64 * width, 64 * height, frames)


@settings(max_examples=100, deadline=None)
@given(relatives())
def test_a_bundle_takes_the_relatives_of_its_clips(both: tuple[ClipShape, ClipShape]) -> None:
    """Portrait, square and shorter clips."""
    built, clip = both
    asked = request(built.name)
    rules = {
        "video_decoder": (LATENT, ("Fl", "Hl", "Wl")),
        "video_encoder": (VIDEO, ("F", "H", "W")),
        "spatial_upsampler": (LATENT, ("Fl", "Hl", "Wl")),
        "temporal_upsampler": (LATENT, ("Fl", "Hl", "Wl")),
        "transformer_block": (TOKENS, ("Tv",)),
    }
    buckets = {name: component_buckets(name, [spec], asked) for name, (spec, _) in rules.items()}

    def check(name: str, *sizes: int) -> None:
        given = dict(zip(rules[name][1], sizes, strict=True))
        choose_bucket(name, buckets[name], {"B": 1, **given})

    half = clip.half()
    assert half is not None
    check("temporal_upsampler", *clip.cells())  # once rows and columns are doubled
    check("spatial_upsampler", *half.cells())
    check("video_encoder", clip.num_frames, half.height, half.width)
    for stage in (clip, half):
        check("transformer_block", math.prod(stage.cells()))
        check("video_encoder", 1, stage.height, stage.width)
        for tile in product(*TilingConfig.auto().tiles(stage.cells())):
            check("video_decoder", *(t.source.stop - t.source.start for t in tile))
    for tile in product(*TilingConfig.default().tiles(clip.cells(), encode=True)):
        check("video_encoder", *(t.source.stop - t.source.start for t in tile))


@settings(max_examples=60, deadline=None)
@given(clips, st.floats(12, 60))
def test_images_tokens_and_sound_have_buckets(clip: ClipShape, frame_rate: float) -> None:
    asked = request(clip.name)
    encoder = component_buckets("video_encoder", [VIDEO], asked)
    block = component_buckets("transformer_block", [TOKENS, AUDIO], asked)
    sound = AudioLatentShape.from_duration(clip.num_frames / frame_rate).num_frames
    for shape in asked.stages():
        sizes = {"B": 1, "F": 1, "H": shape.height, "W": shape.width}
        choose_bucket("video_encoder", encoder, sizes)
        tokens = math.prod(shape.cells())
        for count in (1, tokens, tokens + shape.cells()[1] * shape.cells()[2]):
            choose_bucket("block", block, {"B": 1, "Tv": count, "Ta": max(sound, 1)})
    if sound:
        audio = component_buckets(
            "vocoder", [TensorSpec("mel", "float32", ("B", 2, "M", 64))], asked
        )
        choose_bucket("vocoder", audio, {"B": 1, "M": 4 * sound})


def test_head_and_tail_have_one_bucket_for_all_stages() -> None:
    asked = request("768x512x121", "64x64x257", max_batch=3)
    (bucket,) = component_buckets("transformer_head", [TOKENS, AUDIO], asked)
    assert bucket.name == "up to 768x512x121"
    assert bucket.sizes["B"] == (1, 3, 3)
    assert bucket.sizes["Tv"] == (1, 6144, 15360)
    # the longest sound is that of the longest clip: 257 frames at 12 a second, and a reference
    assert bucket.sizes["Ta"] == (1, 126, 2 * 535)


def test_lora_inputs_have_ranks_up_to_those_of_official_files() -> None:
    factor = TensorSpec("attn1.to_q.lora_a", "bfloat16", (4096, "r"))
    for bucket in component_buckets("transformer_block", (TOKENS, factor), request("768x512x121")):
        low, _, high = bucket.sizes["r"]
        assert low == 1
        assert high >= 450  # the distilled LoRA of LTX-2.5 (spec/lora.md)


def test_one_stage_shapes_need_no_half() -> None:
    assert [s.name for s in request("96x64x9").stages()] == ["96x64x9"]


def test_diffusion_decoder_tiles_and_ghost_frames() -> None:
    asked = request("768x512x121")
    features = component_buckets("diffusion_features", [LATENT], asked)
    assert features[-1].sizes["Fl"] == (3, 17, 17)
    assert features[-1].sizes["Hl"] == (4, 16, 24)
    tensor = TensorSpec("features", "float32", ("B", "Fs", "Hs", "Ws", 256))
    context = component_buckets("diffusion_context", [tensor], asked)
    patches = TensorSpec("noisy_patches", "float32", ("B", "F", "Hc", "Wc", 48))
    pixels = component_buckets("diffusion_pixels", [patches], asked)
    assert [b.name for b in context] == [b.name for b in pixels]
    assert {b.name.split(" ")[0] for b in context} == {"384x256x121", "768x512x121"}
    for bucket in pixels:
        low, _, high = bucket.sizes["F"]
        assert 1 <= low <= high <= 121


def test_what_no_rule_names_is_our_bug() -> None:
    with pytest.raises(InternalError, match="no rule"):
        component_buckets("unknown", [], request("64x64x9"))
    with pytest.raises(InternalError, match="Q"):
        component_buckets("vocoder", [TensorSpec("mel", "float32", ("B", "Q"))], request("64x64x9"))


SMALL = Bucket(name="small", sizes={"B": (1, 1, 1), "T": (1, 100, 200)})
LARGE = Bucket(name="large", sizes={"B": (1, 1, 1), "T": (1, 1000, 2000)})


@pytest.mark.parametrize(("tokens", "index"), [(1, 0), (200, 0), (201, 1), (500, 1), (2000, 1)])
def test_the_bucket_made_for_the_likest_size_is_chosen(tokens: int, index: int) -> None:
    assert choose_bucket("block", [SMALL, LARGE], {"B": 1, "T": tokens}) == index


def test_a_request_outside_is_told_the_nearest_bucket() -> None:
    assert nearest_bucket([SMALL, LARGE], {"B": 1, "T": 2500}) is LARGE
    assert nearest_bucket([SMALL, LARGE], {"B": 2, "T": 120}) is SMALL
    with pytest.raises(ShapeError) as error:
        choose_bucket("transformer_block", [SMALL, LARGE], {"B": 2, "T": 2500})
    text = str(error.value)
    assert "transformer_block" in text
    assert "nearest is large: B=2 is not in 1..1, T=2500 is not in 1..2000" in text
    assert "--shapes" in text


def test_shapes_that_are_no_clips_are_told_the_nearest() -> None:
    with pytest.raises(ShapeError) as error:
        parse_shapes(["770x512x120", "64x64", "64x-64x9", "64x64x9"])
    text = str(error.value)
    assert "3 problems" in text
    assert "770x512x120" in text
    assert "Nearest valid: 768x512x121" in text
    assert "'64x64' is not WIDTHxHEIGHTxFRAMES" in text
    assert parse_shapes(["768X512X121", "64x64x9", "64x64x9"]) == (
        ClipShape(64, 64, 9),
        ClipShape(768, 512, 121),
    )


def test_what_pads_by_reflection_has_no_bucket_of_one_cell() -> None:
    least = {"min_latent_cells": 2}
    small = dataclasses.replace(
        request("64x64x9"),
        options={"video_encoder": least, "video_decoder": least},
    )
    assert [b.name for b in component_buckets("video_decoder", [LATENT], small)] == [
        "64x64x9 tiles"
    ]
    assert [b.name for b in component_buckets("video_encoder", [VIDEO], small)] == [
        "64x64x1", "64x64x9 tiles",
    ]  # fmt: skip
    rgb = TensorSpec("frames", "float32", ("F", "H", "W", 3))
    assert [b.name for b in component_buckets(VIDEO_RGB, [rgb], small)] == ["64x64x9"]
    tiny = dataclasses.replace(small, shapes=parse_shapes(["64x32x9"]))
    with pytest.raises(OptionError, match=r"64x32x9 are too small .* clips of at least 64x64"):
        component_buckets("video_decoder", [LATENT], tiny)
    with pytest.raises(OptionError, match="video_encoder, which pads by reflection"):
        check_sides(tiny)
