"""Whatever is given in place of weights is called what it is, wherever a file is opened."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

from ltx2rt.bundle.manifest import read_manifest
from ltx2rt.components.embeddings import check_embeddings
from ltx2rt.errors import BundleError, CheckpointError, Ltx2rtError, MediaError
from ltx2rt.file_kind import kind_of
from ltx2rt.lora.files import open_lora
from ltx2rt.media.still_reader import load_image
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt_export.checkpoint import open_model
from ltx2rt_export.gemma_files import open_gemma
from ltx2rt_export.layouts.open import open_weights
from tests.unit.checkpoint_files import sharded, write_names


def zipped(name: str, content: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


#: name of a file -> its content, and what the message calls it and advises
FILES: dict[str, tuple[bytes, str]] = {
    "html.safetensors": (b"<!DOCTYPE html><html><title>Access", "an HTML page.*log in"),
    "page.safetensors": (b"\r\n<html lang='en'>", "an HTML page"),
    "xml.safetensors": (b"<?xml version='1.0'?><Error>", "file store.*download"),
    "answer.safetensors": (b"Entry not found", "the answer of a model hub"),
    "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "model.pt": (zipped("archive/data.pkl"), "a PyTorch file"),
    "renamed.safetensors": (zipped("model/data.pkl"), "a PyTorch file"),
    "0f-ltxvideo2.pt": (
        zipped("0f/data.pkl", b"\x80\x02}q\0(X\r\0\0\0prompt_embedsq\1"),
        "cache of a text, as SimpleTuner.*give the prompt itself",
    ),
    "clip.pt": (
        zipped("clip/data.pkl", b"\x80\x02}q\0(X\x07\0\0\0latentsq\1"),
        "cache of a clip, as SimpleTuner.*give the clip itself",
    ),
    "packed.pt": (b"\x1f\x8b\x08" + bytes(20), "a compressed PyTorch file.*the prompt or the clip"),
    "old.ckpt": (b"\x80\x02}q\x00", "a PyTorch file"),
    "all.zip": (zipped("model.safetensors"), "a packed archive.*unpack"),
    "model.gguf": (b"GGUF" + bytes(60), "a GGUF file"),
    "sh.safetensors.index.json": (b'{"weight_map": {"a": "b"}}', "the index of a model"),
    "config.json": (b'{"model_type": "gemma3"}', "configuration of a text model.*--gemma"),
    "model_index.json": (b'{"_diffusers_version": "0.42"}', "give the folder"),
    "request.json": (b"{}", "a JSON text"),
    "notes.safetensors": (b"see the other branch\r\n", "a text file"),
    "empty.safetensors": (b"", "an empty file.*download"),
    "hole.safetensors": (bytes(5000), "never finished"),
    "x.safetensors.part": (b"\x10\0\0\0\0\0\0\0{", "an unfinished download"),
    "plan.engine": (b"ftrt" + bytes(40), "a TensorRT engine"),
    "still.png": (b"\x89PNG\r\n\x1a\n" + bytes(40), "a picture"),
    "clip.mp4": (b"\0\0\0\x20ftypisom" + bytes(40), "a video or sound file"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    content, message = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    for opens in (SafetensorsFile, open_lora, lambda p: check_embeddings(p, {}, "")):
        with pytest.raises(CheckpointError, match=f"{name} is .*{message}") as error:
            opens(path)
        assert len(str(error.value).splitlines()) == 1


FOLDERS: dict[str, tuple[dict[str, object], str]] = {
    "bundle": ({"manifest.json": {}}, "a bundle.*generate --bundle"),
    "pipeline": ({"model_index.json": {}}, "a diffusers folder.*--checkpoint"),
    "part": ({"config.json": {"_class_name": "LTX2Vocoder"}}, r"one part \(LTX2Vocoder\)"),
    "gemma": (
        {"config.json": {"model_type": "gemma3"}},
        "the folder of a text model .*give it as --gemma",
    ),
    "llama": ({"config.json": {"model_type": "llama"}}, "no part of LTX-2"),
    "adapter": ({"adapter_config.json": {}}, "the folder of a LoRA"),
    "several": ({"a.safetensors": {}, "b.safetensors": {}}, "a folder with a.safetensors, b"),
    "empty": ({}, "a folder without weights"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    files, message = FOLDERS[name]
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"{name} is .*{message}"):
        SafetensorsFile(folder)


def test_weights_are_not_called_anything_else(demo_model: dict[str, Path]) -> None:
    assert kind_of(demo_model["checkpoint"]) is None


def test_pictures_and_bundles_say_it_too(tmp_path: Path, demo_model: dict[str, Path]) -> None:
    page = tmp_path / "image.png"
    page.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(MediaError, match=r"is an HTML page .*, not an image that can be read"):
        load_image(page)
    page.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(MediaError, match="is not an image that can be read"):
        load_image(page)
    with pytest.raises(BundleError, match=r"not a bundle: it is the folder of a text model"):
        read_manifest(demo_model["gemma"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="not a bundle: it holds no manifest"):
        read_manifest(tmp_path / "empty")
    with pytest.raises(BundleError, match="no such folder"):
        read_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize("index", [True, False])
def test_any_file_of_a_sharded_model_stands_for_all(
    tmp_path: Path, demo_model: dict[str, Path], *, index: bool
) -> None:
    shards = sharded(demo_model["checkpoint"], tmp_path, index=index)
    whole = SafetensorsFile(demo_model["checkpoint"])
    named = [*shards, tmp_path, *([tmp_path / "model.safetensors.index.json"] if index else [])]
    for path in named:
        model = open_model(path, demo_model["gemma"])
        assert model.config("transformer")["num_layers"] == 3
        found = open_weights(path)
        assert {n: (e.dtype, e.shape) for n, e in found.items()} == {
            n: (e.dtype, e.shape) for n, e in whole.items()
        }
    shards[1].unlink()
    for path in named:
        if path.exists():
            with pytest.raises(CheckpointError, match=r"2 files, of which 1 is not .*00002-of"):
                open_model(path, demo_model["gemma"])


def test_damaged_indices_are_refused(tmp_path: Path) -> None:
    index = tmp_path / "m.safetensors.index.json"
    for table in ({}, {"a": 3}, {"a": "../m.safetensors"}, []):
        index.write_text(json.dumps({"weight_map": table}))
        with pytest.raises(CheckpointError, match="is damaged: it has no `weight_map`"):
            open_weights(index)
    for name in ("a", "b"):
        write_names(tmp_path / f"{name}.safetensors", ["x.weight"])
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    with pytest.raises(Ltx2rtError, match=r"b.safetensors holds x.weight, which a.safetensors"):
        open_weights(index)


def test_what_is_no_gemma_is_named(tmp_path: Path) -> None:
    adapter = write_names(
        tmp_path / "style.safetensors", ["transformer_blocks.0.attn1.to_q.lora_A.weight"]
    )
    with pytest.raises(
        CheckpointError, match=r"--gemma .*style\.safetensors is a LoRA; expected Gemma"
    ):
        open_gemma(adapter.path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a bundle"):
        open_gemma(tmp_path / "b")
