"""The same tiny model in every layout that people hold makes the same components: same networks,
same facts, same numbers. A clip is a function of these.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from ltx2rt.errors import CheckpointError, Ltx2rtError, UnsupportedError
from ltx2rt.lora.files import Lora
from ltx2rt.weights.safetensors import MappedFiles, TensorEntry
from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export.bundle import make_components
from ltx2rt_export.checkpoint import ModelFiles, open_model
from ltx2rt_export.component import Component
from ltx2rt_export.inspect import inspect_path
from ltx2rt_export.layouts.open import open_weights
from tests.layout_cases import LAYOUTS
from tests.once import made_once
from tests.parity.demo_loras import write_demo_lora
from tests.parity.diffusers_models import write_folder
from tests.parity.mlx_folder import write_mlx_folder
from tests.unit.checkpoint_files import copy_with, sharded

Demo = dict[str, Path]
PREFIX = "model.diffusion_model."
CONNECTORS = ("video_embeddings_connector", "audio_embeddings_connector")
VIDEO = ("video_encoder", "video_decoder")


@pytest.fixture(scope="session")
def folder(demo_model: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model saved by diffusers; read-only."""

    def write(place: Path) -> dict[str, Path]:
        return {"folder": write_folder(open_model(**demo_model), place / "distilled-diffusers")}

    return made_once(tmp_path_factory, "diffusers-folder", write)["folder"]


def part(demo: Demo, target: Path, *prefixes: str, strip: str = "\0", **metadata: None) -> Path:
    """Tensors of the demo's checkpoint that begin so; without metadata if that is given as None."""
    return copy_with(
        demo["checkpoint"], target,
        keep=lambda n: n.startswith(prefixes), rename=lambda n: n.removeprefix(strip),
        metadata={} if metadata else None,
    )  # fmt: skip


def is_transformer(name: str) -> bool:
    return name.startswith(PREFIX) and not any(c in name for c in CONNECTORS)


def comfy_split(demo: Demo, tmp: Path) -> ModelFiles:
    transformer = copy_with(
        demo["checkpoint"], tmp / "ltx-2.3_transformer_only.safetensors", keep=is_transformer
    )
    text = copy_with(
        demo["checkpoint"], tmp / "embeddings_connectors.safetensors",
        keep=lambda n: any(c in n for c in CONNECTORS) or n.startswith("text_embedding"),
    )  # fmt: skip
    return open_model(
        transformer,
        demo["gemma"],
        video_vae=part(demo, tmp / "vae.safetensors", "vae.", strip="vae."),
        audio_vae=part(demo, tmp / "audio.safetensors", "audio_vae.", "vocoder."),
        text_encoder=text,
    )


def diffsynth(demo: Demo, tmp: Path) -> ModelFiles:
    (tmp / "parts").mkdir()
    statistics = "vae.per_channel_statistics."
    copy_with(
        demo["checkpoint"], tmp / "parts/transformer.safetensors", keep=is_transformer, metadata={}
    )
    copy_with(
        demo["checkpoint"], tmp / "parts/text_encoder_post_modules.safetensors",
        keep=lambda n: any(c in n for c in CONNECTORS) or n.startswith("text_"), metadata={},
    )  # fmt: skip
    for name, prefixes in {
        "video_vae_encoder": ("vae.encoder.", statistics),
        "video_vae_decoder": ("vae.decoder.", statistics),
        "audio_vae_encoder": ("audio_vae.encoder.", f"audio_{statistics}"),
        "audio_vae_decoder": ("audio_vae.decoder.", f"audio_{statistics}"),
        "audio_vocoder": ("vocoder.",),
    }.items():
        part(demo, tmp / f"parts/{name}.safetensors", *prefixes, metadata=None)
    return open_model(tmp / "parts", demo["gemma"])


def fine_tune(demo: Demo, tmp: Path) -> ModelFiles:
    """A transformer alone, without metadata and prefix, as trainers save it."""
    bare = copy_with(
        demo["checkpoint"], tmp / "model.safetensors", keep=is_transformer,
        rename=lambda n: n.removeprefix(PREFIX), metadata={},
    )  # fmt: skip
    whole = demo["checkpoint"]
    return open_model(bare, demo["gemma"], video_vae=whole, audio_vae=whole, text_encoder=whole)


def shards(demo: Demo, tmp: Path) -> ModelFiles:
    return open_model(sharded(demo["checkpoint"], tmp, index=True)[1], demo["gemma"])


def repack(demo: Demo, tmp: Path) -> ModelFiles:
    path = copy_with(
        demo["checkpoint"], tmp / "repack.safetensors", metadata={},
        rename=lambda n: n.replace(PREFIX, "diffusion_model."),
    )  # fmt: skip
    return open_model(path, demo["gemma"])


OPENERS: dict[str, Callable[[Demo, Path], ModelFiles]] = {
    "shards": shards,
    "repack": repack,
    "comfy": comfy_split,
    "diffsynth": diffsynth,
    "fine-tune": fine_tune,
}


def values(entries: Mapping[str, TensorEntry]) -> dict[str, np.ndarray]:
    maps = MappedFiles()
    return {name: maps.load(entry, "float32") for name, entry in entries.items()}


@pytest.fixture(scope="session")
def wanted(demo_model: Demo, tmp_path_factory: pytest.TempPathFactory) -> list[Component]:
    """The components of the official file."""
    model = open_model(demo_model["checkpoint"], demo_model["gemma"])
    return make_components(model, (), tmp_path_factory.mktemp("wanted"))


def assert_same(
    got: ModelFiles, theirs: list[Component], tmp: Path, *, besides: tuple[str, ...] = ()
) -> None:
    ours = make_components(got, (), tmp)
    assert [c.name for c in ours] == [c.name for c in theirs]
    for one, other in zip(ours, theirs, strict=True):
        if one.name in besides:
            continue
        assert one.options == other.options
        assert str(one.module) == str(other.module)
        for layer, wanted in zip(
            one.layers or (one.weights,), other.layers or (other.weights,), strict=True
        ):
            first, second = values(layer), values(wanted)
            assert first.keys() == second.keys()
            assert all(np.array_equal(first[n], second[n]) for n in first), one.name


def test_the_table_of_layouts_is_what_is_tested() -> None:
    names = {row.test for row in LAYOUTS if row.test}
    assert names == {*OPENERS, "diffusers", "monolith", "mlx-video"}


@pytest.mark.parametrize("layout", OPENERS)
def test_every_layout_makes_the_same_model(
    demo_model: Demo, wanted: list[Component], tmp_path: Path, layout: str
) -> None:
    assert_same(OPENERS[layout](demo_model, tmp_path), wanted, tmp_path)


def test_a_folder_of_mlx_video_makes_the_same_model(
    demo_model: Demo, wanted: list[Component], tmp_path: Path
) -> None:
    """It has no encoder of sound, and no Gemma where the source had none."""
    folder = write_mlx_folder(demo_model["checkpoint"], tmp_path / "mlx")
    shutil.copytree(demo_model["gemma"], folder / "text_encoder")
    got = open_model(folder)
    assert got.version.generation == "LTX-2.3"
    assert_same(got, [c for c in wanted if c.name != "audio_encoder"], tmp_path)
    (said,) = got.warnings
    assert "has no encoder of sound" in said
    info = inspect_path(folder)
    assert info["description"] == "an LTX-2 checkpoint (mlx-video's folder)"
    assert "gemma" in {c["name"] for c in info["components"]}
    with pytest.raises(CheckpointError, match=r"part of LTX-2 for MLX, .* as --checkpoint"):
        open_model(folder / "transformer", demo_model["gemma"])
    with pytest.raises(CheckpointError, match="part of LTX-2 for MLX"):
        open_model(demo_model["checkpoint"], demo_model["gemma"], video_vae=folder / "vae/decoder")
    write_safetensors(folder / "vocoder/model.safetensors", {"a.scales": np.ones(3, np.float32)})
    with pytest.raises(UnsupportedError, match="quantised for MLX"):
        open_model(folder)
    shutil.rmtree(folder / "vocoder")
    with pytest.raises(CheckpointError, match="mlx-video without vocoder"):
        open_model(folder)


def test_a_folder_of_diffusers_makes_the_same_model(
    folder: Path, wanted: list[Component], tmp_path: Path
) -> None:
    """The VAE has random weights there: tests/parity/test_video_vae_diffusers.py compares it."""
    got = open_model(folder)
    assert_same(got, wanted, tmp_path, besides=VIDEO)
    assert got.version.generation == "LTX-2.3"
    assert got.version.is_distilled
    assert len(got.files["transformer"].files) > 5  # shards among them
    info = inspect_path(folder)
    assert info["kind"] == "checkpoint"
    assert {c["name"] for c in info["components"]} >= {"transformer", "video_vae", "gemma"}
    assert info["description"].endswith("(diffusers folder)")
    ready = {row["name"]: row["needs"] for row in info["pipelines"]}
    assert ready["one-stage"] == []
    assert ready["distilled"] == ["spatial upsampler"]


def test_the_transformer_beside_a_full_one_is_distilled(
    demo_model: Demo, folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "LTX-2.5-Diffusers"  # a name that says nothing
    place.mkdir()
    for entry in folder.iterdir():
        (place / entry.name).symlink_to(entry)
    assert open_model(place).version.is_distilled is None
    (place / "transformer_full").symlink_to(folder / "transformer")
    assert open_model(place).version.is_distilled
    whole = demo_model["checkpoint"]
    for name, distilled in (("transformer", True), ("transformer_full", False)):
        model = open_model(
            place / name, demo_model["gemma"], video_vae=whole, audio_vae=whole, text_encoder=whole
        )
        assert model.version.is_distilled is distilled


def test_parts_of_a_diffusers_folder_go_beside_others(
    demo_model: Demo, folder: Path, tmp_path: Path
) -> None:
    alone = folder / "transformer"
    whole = demo_model["checkpoint"]
    got = open_model(
        alone, folder / "text_encoder", video_vae=folder / "vae", audio_vae=whole,
        text_encoder=folder / "connectors",
    )  # fmt: skip
    want = open_model(folder)
    for role in ("transformer", "connectors", "text_projection", "video_vae"):
        ours, theirs = values(got.tensors(role)), values(want.tensors(role))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[n], theirs[n]) for n in ours)
    assert got.config("text") == want.config("text")
    assert got.config("text")["connector_positional_embedding_max_pos"] == [4096]
    assert got.config("video_vae") == want.config("video_vae")
    single = tmp_path / "diffusion_pytorch_model.safetensors"
    single.write_bytes((folder / "vocoder/diffusion_pytorch_model.safetensors").read_bytes())
    assert values(open_weights(single)).keys() == {f"vocoder.{n}" for n in want.tensors("vocoder")}


def test_broken_diffusers_folders_are_explained(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="without transformer, connectors, vae"):
        open_model(copy)
    for name in ("transformer", "connectors", "vae", "audio_vae", "vocoder"):
        (copy / name).symlink_to(folder / name)
    with pytest.raises(CheckpointError, match=r"copy is incomplete: no Gemma: give --gemma DIR"):
        open_model(copy)
    (copy / "vae").unlink()
    (copy / "vae").symlink_to(folder / "vocoder")
    with pytest.raises(UnsupportedError, match=r"class LTX2VocoderWithBWE, .* as video vae"):
        open_model(copy)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("transformer", "audio_hop_length", 320),
        ("transformer", "rope_type", "interleaved"),
        ("vae", "decoder_causal", True),
        ("vae", "encoder_spatial_padding_mode", "reflect"),
    ],
)
def test_values_that_no_model_has_are_refused(
    folder: Path, tmp_path: Path, name: str, key: str, value: object
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for place in folder.iterdir():
        (copy / place.name).symlink_to(place)
    (copy / name).unlink()
    (copy / name).mkdir()
    for file in (folder / name).iterdir():
        (copy / name / file.name).symlink_to(file)
    config = json.loads((folder / name / "config.json").read_text()) | {key: value}
    (copy / name / "config.json").unlink()
    (copy / name / "config.json").write_text(json.dumps(config))
    with pytest.raises(Ltx2rtError, match=key):
        open_model(copy)


def test_adapters_change_other_layouts_too(
    demo_model: Demo, folder: Path, wanted: list[Component], tmp_path: Path
) -> None:
    lora = Lora(path=str(tmp_path / "lora.safetensors"))
    write_demo_lora(Path(lora.path), demo_model, seed=1)
    fused = [
        make_components(model, [lora], tmp_path / str(i))
        for i, model in enumerate((open_model(folder), open_model(demo_model["checkpoint"],
                                                                  demo_model["gemma"])))
    ]  # fmt: skip
    changed = [next(c for c in cs if c.name == "transformer_block").layers[0] for cs in fused]
    first, second = map(values, changed)  # float32 files keep what bfloat16 ones round
    for name, value in second.items():
        np.testing.assert_allclose(first[name], value, rtol=2**-8, atol=2**-9)
    base = next(c for c in wanted if c.name == "transformer_block").layers[0]
    assert not np.array_equal(values(base)["attn1.to_q.weight"], second["attn1.to_q.weight"])


def test_folders_of_ltx25_have_more(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from diffusers.pipelines.ltx2.duration_head import LTX2DurationHead

    copy = tmp_path / "copy"
    copy.mkdir()
    for place in folder.iterdir():
        (copy / place.name).symlink_to(place)
    LTX2DurationHead(64, 32, pooler_hidden_dim=8, mlp_hidden_dim=8).save_pretrained(
        copy / "duration_head"
    )
    (copy / "diffusion_decoder").mkdir()
    model = open_model(copy)
    assert model.has("duration_head")
    assert model.config("duration_head")["num_pooler_heads"] == 4
    assert "diffusion_decoder is not read: clips are decoded by the conv VAE" in caplog.text


def test_audio_parts_apart(demo_model: Demo, tmp_path: Path) -> None:
    """Encoder, decoder and vocoder as files of their own, which no folder holds alone."""
    whole = demo_model["checkpoint"]
    bare = part(demo_model, tmp_path / "a.safetensors", PREFIX, "text_", "vae.")
    statistics = "audio_vae.per_channel_statistics."
    audio = [
        part(demo_model, tmp_path / f"{name}.safetensors", *prefixes)
        for name, prefixes in {
            "audio_vocoder": ("vocoder.",),
            "audio_vae_encoder": ("audio_vae.encoder.", statistics),
            "audio_vae_decoder": ("audio_vae.decoder.", statistics),
        }.items()
    ]
    model = open_model(bare, demo_model["gemma"], audio_vae=audio[0], audio_parts=audio[1:])
    for role in ("audio_vae", "vocoder"):
        ours = values(model.tensors(role))
        theirs = values(open_model(whole, demo_model["gemma"]).tensors(role))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[n], theirs[n]) for n in ours)
        assert model.config(role) == open_model(whole, demo_model["gemma"]).config(role)
    with pytest.raises(CheckpointError, match="not parts of one model"):
        open_model(bare, demo_model["gemma"], audio_vae=audio[1], audio_parts=audio[1:2])
    with pytest.raises(CheckpointError, match=r"the model of .* is incomplete"):
        open_model(bare, demo_model["gemma"], audio_vae=audio[0], audio_parts=audio[1:2])
