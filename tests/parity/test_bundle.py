"""Opening bundles: moved, changed and broken ones are refused with every problem named."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltx2rt.bundle import loader
from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.bundle.host_plan import plan_host
from ltx2rt.bundle.loader import Loader
from ltx2rt.bundle.manifest import read_manifest
from ltx2rt.bundle.memory import stage_weight_bytes
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import BundleError, CheckpointError, EngineError, UnsupportedError
from ltx2rt.names import TRANSFORMER_STACK
from ltx2rt.pipelines.distilled import DistilledPipeline
from tests.parity.command_line import (
    SMALL,
    edited_bundle,
    expect_user_error,
    ltx2rt,
    only_components,
    unchanged,
)

Manifest = dict[str, Any]


@pytest.fixture
def broken(tmp_path: Path) -> Callable[[Path, str], None]:
    """Every command that opens a bundle refuses this one, and writes nothing."""

    def check(bundle: Path, *said: object) -> None:
        with unchanged(tmp_path):
            clip = tmp_path / "x.mp4"
            for command in (
                ("generate", bundle, "--prompt", "a", *SMALL, "-o", clip, "--json"),
                ("doctor", bundle, "--json"),
                ("verify", bundle, "--json"),
            ):
                expect_user_error(ltx2rt(*command), *said)

    return check


@pytest.mark.parametrize("spinning", [False, True])
def test_engines_run_as_they_are_told(demo_bundle: Path, spinning: bool) -> None:
    runtime = RuntimeConfig(threads=3, spinning=spinning)
    with Loader(open_bundle(demo_bundle)).engine("transformer_tail", runtime) as engine:
        options = engine._session.get_session_options()  # type: ignore[attr-defined]
        assert options.intra_op_num_threads == 3
        said = options.get_session_config_entry("session.intra_op.allow_spinning")
        assert said == str(int(spinning))


def test_layers_without_room_are_read_at_every_pass_and_that_is_said(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(demo_bundle)
    layers = plan_host(bundle.manifest, 1 << 40, resident=False).layers
    held = stage_weight_bytes(bundle.manifest)["denoise"]
    monkeypatch.setattr(loader, "machine_bytes", lambda: (held - layers[0] // 2) * 4 // 3)
    with pytest.warns(UserWarning, match=f"the {len(layers)} layers .* read from the files"):
        stack = Loader(bundle).stack(TRANSFORMER_STACK, RuntimeConfig())
    assert len(stack._streamed) == len(layers) - 1  # type: ignore[attr-defined]
    stack.close()
    monkeypatch.setattr(loader, "machine_bytes", lambda: max(layers))
    with pytest.raises(UnsupportedError, match="one layer of the transformer"):
        Loader(bundle).stack(TRANSFORMER_STACK, RuntimeConfig())


@pytest.fixture
def own_bundle(demo_bundle: Path, demo_model: dict[str, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A bundle and the folder of weights that it names, both to break."""
    old = demo_model["checkpoint"].parent
    weights = tmp_path / "weights"
    shutil.copytree(old, weights)

    def rename(manifest: Manifest) -> None:
        for source in manifest["sources"]:
            source["path"] = str(weights / Path(source["path"]).relative_to(old))
        for name, value in manifest["build"].items():
            if isinstance(value, str):
                manifest["build"][name] = str(weights / Path(value).relative_to(old))

    return edited_bundle(demo_bundle, tmp_path / "own.bundle", rename), weights


def add_option(manifest: Manifest) -> None:
    manifest["components"]["vocoder"]["speed"] = 2


def drop_graph(manifest: Manifest) -> None:
    del manifest["components"]["vocoder"]["graph"]


def newer_schema(manifest: Manifest) -> None:
    manifest["schema"] = 99


def wrong_source(manifest: Manifest) -> None:
    layer = manifest["components"]["vocoder"]["layers"][0]
    next(iter(layer.values()))["source"] = 7


def outside(manifest: Manifest) -> None:
    layer = manifest["components"]["vocoder"]["layers"][0]
    next(iter(layer.values()))["offset"] = 2**40


def negative(manifest: Manifest) -> None:
    layer = manifest["components"]["vocoder"]["layers"][0]
    next(iter(layer.values()))["offset"] = -8


def wrong_length(manifest: Manifest) -> None:
    layer = manifest["components"]["vocoder"]["layers"][0]
    next(iter(layer.values()))["length"] = 3


def unknown_dtype(manifest: Manifest) -> None:
    layer = manifest["components"]["vocoder"]["layers"][0]
    next(iter(layer.values()))["dtype"] = "int3"


def unknown_precision(manifest: Manifest) -> None:
    manifest["components"]["vocoder"]["precision"] = "fp7"


def no_layers(manifest: Manifest) -> None:
    manifest["components"]["vocoder"]["layers"] = []


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (add_option, "manifest.components.vocoder has an unknown option 'speed'"),
        (drop_graph, "manifest.components.vocoder lacks 'graph'"),
        (newer_schema, "has schema 99; this version of ltx2rt reads schema 1"),
        (wrong_source, "names source 7, which is not listed"),
        (outside, "lies outside"),
        (negative, "lies outside"),
        (wrong_length, "has 3 bytes"),
        (unknown_dtype, "dtype 'int3'"),
        (unknown_precision, "precision 'fp7'"),
        (no_layers, "vocoder lists no weights"),
    ],
)
def test_bad_manifests(
    edit: Callable[[Manifest], None],
    said: str,
    demo_bundle: Path,
    tmp_path: Path,
    broken: Callable[..., None],
) -> None:
    broken(edited_bundle(demo_bundle, tmp_path / "b", edit), said)


def test_not_a_bundle(
    demo_model: dict[str, Path], tmp_path: Path, broken: Callable[..., None]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    broken(empty, f"{empty} is not a bundle: it holds no manifest.json")
    broken(tmp_path / "none", "is not a bundle: no such folder")
    broken(demo_model["checkpoint"], "is not a bundle")
    (empty / "manifest.json").write_text("{")
    broken(empty, "cannot be read")
    (empty / "manifest.json").write_text("[]")
    broken(empty, "has schema None")


def test_changed_files_are_all_named(
    demo_bundle: Path, tmp_path: Path, broken: Callable[..., None]
) -> None:
    bundle = tmp_path / "b"
    shutil.copytree(demo_bundle, bundle)
    graph = bundle / "graphs" / "vocoder.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    (bundle / "graphs" / "audio_decoder.onnx").unlink()
    (bundle / "text" / "tokenizer.json").write_text("{}")
    broken(
        bundle,
        "cannot be used (3 problems)",
        f"vocoder: {graph} does not match its hash",
        "audio_decoder.onnx cannot be read (No such file or directory)",
        "tokenizer.json does not match its hash",
        "Build it again: ltx2rt build --checkpoint",
    )


def test_moved_weights(
    own_bundle: tuple[Path, Path],
    demo_bundle: Path,
    tmp_path: Path,
    broken: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle, weights = own_bundle
    moved = tmp_path / "moved"
    weights.rename(moved)
    broken(bundle, "4 problems", "No such file", "if it moved, pass its new folder (--weights-dir)")
    clip = ("--prompt", "a", *SMALL, "--quiet", "-o", tmp_path / "x.mp4")
    assert ltx2rt("generate", bundle, *clip, "--weights-dir", moved).code == 0
    assert ltx2rt("doctor", bundle, "--weights-dir", moved).code == 0
    only_components(monkeypatch, "spatial_upsampler")
    verified = ltx2rt("verify", bundle, "--weights-dir", moved, "--json")
    assert (verified.code, verified.json["passed"]) == (0, True)
    flat = tmp_path / "flat"  # everything in one folder, Gemma's shards too
    flat.mkdir()
    for file in moved.rglob("*.safetensors"):
        shutil.copyfile(file, flat / file.name)
    assert open_bundle(bundle, weights_dir=flat).bundle_id == read_manifest(demo_bundle).bundle_id
    with pytest.raises(BundleError, match="4 problems"):
        open_bundle(bundle, weights_dir=tmp_path)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: d[:-100], "is truncated"),
        (lambda d: d[:50], "is truncated"),
        (lambda d: d + b"more", "changed since the build"),
        (lambda d: d.replace(b"2.3.0", b"2.3.1", 1), "changed since the build"),
    ],
)
def test_changed_weights(
    edit: Callable[[bytes], bytes],
    said: str,
    own_bundle: tuple[Path, Path],
    broken: Callable[..., None],
) -> None:
    bundle, weights = own_bundle
    (checkpoint,) = weights.glob("*distilled.safetensors")
    checkpoint.write_bytes(edit(checkpoint.read_bytes()))
    broken(bundle, checkpoint, said)


def test_what_a_bundle_hands_out(demo_bundle: Path, demo_model: dict[str, Path]) -> None:
    bundle = open_bundle(demo_bundle)
    assert bundle.model.generation == "LTX-2.3"
    assert bundle.has(*DistilledPipeline.requires)
    assert not bundle.has("temporal_upsampler")
    with pytest.raises(BundleError, match="holds no temporal_upsampler; it has audio_decoder,"):
        bundle.component("temporal_upsampler")
    assert json.loads(bundle.tokenizer_path().read_text())["model"]
    loader = Loader(bundle)
    layers = [loader.weights("transformer_block", i) for i in (0, 1)]
    name = "attn1.to_q.weight"
    assert layers[0][name].dtype == np.float32
    assert not np.array_equal(layers[0][name], layers[1][name])
    with loader.engine("spatial_upsampler", RuntimeConfig(threads=1)) as engine:
        assert engine.spec.component == "spatial_upsampler"


def test_corrupt_graph_with_a_matching_hash(demo_bundle: Path, tmp_path: Path) -> None:
    data = b"not a graph"

    def edit(manifest: Manifest) -> None:
        manifest["components"]["text_tail"]["graph_sha256"] = hashlib.sha256(data).hexdigest()

    bundle = edited_bundle(demo_bundle, tmp_path / "b", edit)
    (bundle / "graphs" / "text_tail.onnx").write_bytes(data)
    with pytest.raises(EngineError, match="text_tail"):
        Loader(open_bundle(bundle)).engine("text_tail", RuntimeConfig(threads=1))


def test_weights_that_vanish_after_opening(own_bundle: tuple[Path, Path]) -> None:
    bundle, weights = own_bundle
    opened = open_bundle(bundle)
    shutil.rmtree(weights)
    with pytest.raises(CheckpointError, match="cannot map"):
        Loader(opened).engine("vocoder", RuntimeConfig(threads=1))


def test_verify_needs_the_model_files(own_bundle: tuple[Path, Path]) -> None:
    """Verifying says which of the model's files is gone, although the bundle is complete."""
    bundle, weights = own_bundle
    (weights / "gemma-3-demo" / "tokenizer.json").unlink()
    expect_user_error(ltx2rt("verify", bundle), "tokenizer.json is missing")
