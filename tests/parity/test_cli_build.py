"""`ltx2rt build`: bundles that stand alone, LoRAs, and every way that it refuses.

Exporting takes a minute, so most builds here reuse the graphs of the session's demo bundle; one
slow test builds in earnest.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ltx2rt_export.bundle as export_bundle
from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.bundle.loader import Loader
from ltx2rt.bundle.manifest import read_manifest
from ltx2rt.config import RuntimeConfig
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export.component import Component
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.verify import verify_bundle
from tests.parity.command_line import (
    Export,
    build_flags,
    expect_user_error,
    ltx2rt,
    only_components,
    unchanged,
    use_export,
    use_graphs_of,
)

TO_Q = "transformer_blocks.0.attn1.to_q"
Model = dict[str, Path]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The target's folder: a failed build leaves it as it was."""
    path = tmp_path / "out"
    path.mkdir()
    (path / "note.txt").write_text("mine")
    with unchanged(path):
        yield path


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input is found before the first graph is exported."""
    use_export(lambda component, *_: pytest.fail(component.name), monkeypatch)


@pytest.fixture
def ready_graphs(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Exporting gives the demo bundle's own graphs."""
    return use_graphs_of(demo_bundle, monkeypatch)


@pytest.fixture
def own_model(demo_model: Model, tmp_path: Path) -> Model:
    """A copy of the demo model to move, break or delete."""
    root = demo_model["checkpoint"].parent
    shutil.copytree(root, tmp_path / "my model")
    return {name: tmp_path / "my model" / p.relative_to(root) for name, p in demo_model.items()}


def write_lora(model: Model, path: Path, modules: tuple[str, ...] = (TO_Q,)) -> Path:
    checkpoint = SafetensorsFile(model["checkpoint"])
    rng = np.random.default_rng(1)
    tensors: dict[str, Any] = {}
    for module in modules:
        rows, columns = checkpoint[f"model.diffusion_model.{module}.weight"].shape
        name = f"diffusion_model.{module}"
        tensors[f"{name}.lora_A.weight"] = rng.standard_normal((2, columns), np.float32)
        tensors[f"{name}.lora_B.weight"] = rng.standard_normal((rows, 2), np.float32)
    write_safetensors(path, tensors)
    return path


def video_latent(bundle: Path) -> np.ndarray:
    """The final latent of a small clip."""
    with DistilledPipeline(open_bundle(bundle), RuntimeConfig(threads=1)) as pipe:
        return pipe(prompt="a", height=64, width=64, num_frames=9).video_latent


def block_agrees(bundle: Path, overlay: Path) -> bool:
    """The part of `ltx2rt verify` that a LoRA on a block concerns."""
    opened = open_bundle(bundle)
    inputs = export_bundle.inputs_in(opened.manifest.build, bundle)
    components = export_bundle.make_components(
        export_bundle.open_inputs(inputs), inputs.loras, overlay
    )
    block = [c for c in components if c.name == "transformer_block"]
    return all(rung.passed for rung in verify_bundle(opened, block))


def graph_hashes(bundle: Path) -> dict[str, str]:
    return {n: e.graph_sha256 for n, e in read_manifest(bundle).components.items()}


@pytest.mark.slow
def test_build_is_repeatable_and_a_copy_stands_alone(
    demo_bundle: Path, own_model: Model, tmp_path: Path
) -> None:
    bundle = tmp_path / "copy.bundle"
    lora = write_lora(own_model, tmp_path / "my lora.safetensors")
    outcome = ltx2rt(
        "build", *build_flags(own_model), "--lora", f"{lora}:0.5", "--copy-weights", "-o", bundle,
        "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.json["components"] == sorted(read_manifest(demo_bundle).components)
    count = len(outcome.json["components"])
    assert f"export: {count}/{count}" in outcome.err
    assert graph_hashes(bundle) == graph_hashes(demo_bundle)
    shutil.rmtree(own_model["checkpoint"].parent)
    lora.unlink()
    moved = tmp_path / "elsewhere" / "b"
    moved.parent.mkdir()
    bundle.rename(moved)
    changed = video_latent(moved)
    assert np.abs(changed - video_latent(demo_bundle)).max() > 1e-3
    assert ltx2rt("verify", moved).code == 0


def test_equal_builds_have_equal_ids(
    demo_bundle: Path, own_model: Model, ready_graphs: Export, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    assert ltx2rt("build", *build_flags(own_model), "-o", again, "--quiet").code == 0
    assert read_manifest(again).bundle_id == read_manifest(demo_bundle).bundle_id
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "my model"]
    for graph in (demo_bundle / "graphs").iterdir():
        assert (again / "graphs" / graph.name).read_bytes() == graph.read_bytes()


def test_copied_weights(
    demo_bundle: Path,
    own_model: Model,
    ready_graphs: Export,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Relative paths, two files of one name, a Gemma folder without optional files."""
    (own_model["gemma"] / "processor_config.json").unlink()
    upsampler = own_model["checkpoint"].parent / "more" / own_model["checkpoint"].name
    upsampler.parent.mkdir()
    own_model["spatial_upsampler"].rename(upsampler)
    own_model["spatial_upsampler"] = upsampler
    monkeypatch.chdir(tmp_path)
    model = {name: p.relative_to(tmp_path) for name, p in own_model.items()}
    outcome = ltx2rt("build", *build_flags(model), "--copy-weights", "-o", "b", "--quiet")
    assert outcome.code == 0, outcome.err
    shutil.rmtree(own_model["checkpoint"].parent)
    manifest = read_manifest(Path("b"))
    assert all(not Path(s.path).is_absolute() for s in manifest.sources)
    assert len({s.path for s in manifest.sources}) == 4  # two of them shards of Gemma
    np.testing.assert_array_equal(video_latent(Path("b")), video_latent(demo_bundle))
    only_components(monkeypatch, "text_tail", "spatial_upsampler", "audio_decoder")
    verified = ltx2rt("verify", "b", "--json")
    assert verified.code == 0, verified.err
    copied = Path("b") / str(manifest.build.checkpoint)
    for kind, path in (("a Gemma", Path("b/weights/gemma")), ("checkpoint", copied)):
        described = ltx2rt("inspect", path)
        assert described.code == 0, described.err
        assert kind.split()[-1] in described.out


def block_weights(bundle: Bundle) -> list[dict[str, np.ndarray]]:
    loader, served = Loader(bundle), bundle.component("transformer_block").served
    return [loader.weights("transformer_block", layer) for layer in served]


def test_lora_changes_only_its_tensors(
    demo_bundle: Path, own_model: Model, ready_graphs: Export, tmp_path: Path
) -> None:
    lora = write_lora(own_model, tmp_path / "l.safetensors")
    base = open_bundle(demo_bundle)
    plain = block_weights(base)
    latents = [video_latent(demo_bundle)]
    for strength, flags in (("0.5", ()), ("0.5", ("--copy-weights",)), ("1", ()), ("0", ())):
        target = tmp_path / f"s{strength}{len(flags)}"
        common = ("build", *build_flags(own_model), "-o", target, "--quiet", *flags)
        outcome = ltx2rt(*common, "--lora", f"{lora}:{strength}")
        assert outcome.code == 0, outcome.err
        bundle = open_bundle(target)
        assert (bundle.bundle_id == base.bundle_id) == (strength == "0")
        fused = block_weights(bundle)
        for index in range(len(plain)):
            for name, weight in plain[index].items():
                same = np.array_equal(fused[index][name], weight)
                changed = index == 0 and name == "attn1.to_q.weight" and strength != "0"
                assert same != changed, (index, name)
        latents.append(video_latent(target))
        assert block_agrees(target, tmp_path / "overlay")
    original, half, copied, whole, none = latents
    np.testing.assert_array_equal(half, copied)
    np.testing.assert_array_equal(original, none)
    assert np.abs(half - original).max() > 1e-4
    assert np.abs(whole - half).max() > 1e-4


def test_existing_target(
    demo_bundle: Path, demo_model: Model, ready_graphs: Export, tmp_path: Path
) -> None:
    flags = (*build_flags(demo_model), "--quiet")
    full = tmp_path / "full"
    full.mkdir()
    (full / "holiday.jpg").write_bytes(b"mine")
    file = tmp_path / "file"
    file.write_text("mine")
    with unchanged(tmp_path):
        for target in (full, file):
            for force in ((), ("--force",)):
                outcome = ltx2rt("build", *flags, "-o", target, *force)
                expect_user_error(outcome, "exists and is not a bundle", target)
    old = tmp_path / "old"
    shutil.copytree(demo_bundle, old)
    (old / "stale").write_text("from an older build")
    link = tmp_path / "link"
    link.symlink_to(old)
    with unchanged(old):
        expect_user_error(ltx2rt("build", *flags, "-o", old), f"{old} exists; pass --force")
        expect_user_error(ltx2rt("build", *flags, "-o", link), f"{link} exists; pass --force")
    assert ltx2rt("build", *flags, "-o", link, "--force").code == 0
    assert link.is_symlink()
    assert not (old / "stale").exists()
    open_bundle(link)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full", "link", "old"]


def test_a_bundle_is_not_replaced_by_one_that_reads_it(
    own_model: Model, ready_graphs: Export, tmp_path: Path
) -> None:
    target = tmp_path / "b"
    flags = ("--copy-weights", "-o", target, "--quiet")
    assert ltx2rt("build", *build_flags(own_model), *flags).code == 0
    inside = {
        "checkpoint": target / "weights" / own_model["checkpoint"].name,
        "gemma": target / "weights" / "gemma",
        "spatial_upsampler": target / "weights" / own_model["spatial_upsampler"].name,
    }
    with unchanged(target):
        outcome = ltx2rt("build", *build_flags(inside), *flags, "--force")
        expect_user_error(outcome, f"cannot replace {target}: it holds", "choose another name")


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_build_that_stops_leaves_nothing(
    after: int,
    error: type[BaseException],
    demo_bundle: Path,
    demo_model: Model,
    ready_graphs: Export,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(demo_bundle, folder / "old")
    count = [0]

    def stop(component: Component, *options: object) -> ExportedGraph:
        count[0] += 1
        if count[0] > after:
            raise error(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return ready_graphs(component, *options)

    use_export(stop, monkeypatch)
    with unchanged(folder):
        flags = (*build_flags(demo_model), "-o", folder / "old", "--force", "--copy-weights")
        outcome = ltx2rt("build", *flags, "--quiet")
    assert outcome.code == (130 if error is KeyboardInterrupt else 2)
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    shutil.rmtree(folder / "old")


def test_what_a_killed_build_left_goes_with_the_next(
    demo_model: Model, ready_graphs: Export, tmp_path: Path
) -> None:
    names = (".b.0123abc_.part", ".b.c.0123abc_.part", ".b.notes.part", ".bb.0123abc_.part")
    for name in names:
        (tmp_path / name / "weights").mkdir(parents=True)
    outcome = ltx2rt("build", *build_flags(demo_model), "-o", tmp_path / "b", "--quiet")
    assert outcome.code == 0, outcome.err
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names[1:], "b"])


def test_loras_are_fused_after_the_backend_was_checked(
    demo_model: Model,
    no_export: None,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export_bundle, "fuse_loras", lambda *_: pytest.fail("it writes weights"))
    lora = write_lora(demo_model, tmp_path / "l.safetensors")
    flags = (*build_flags(demo_model), "--lora", lora, "-o", folder / "b")
    outcome = ltx2rt("build", *flags, "--backend", "tensorrt", "--precision", "bf16")
    expect_user_error(outcome, "pip install tensorrt-cu13")


def test_disk_full_while_weights_are_copied(
    demo_model: Model, ready_graphs: Export, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ltx2rt.weights.safetensors_writer.shutil.disk_usage", lambda _: SimpleNamespace(free=100)
    )
    flags = (*build_flags(demo_model), "-o", folder / "b", "--copy-weights", "--quiet")
    expect_user_error(ltx2rt("build", *flags), "cannot write", "No space left")


def overwrite(path: Path, edit: Callable[[bytes], bytes]) -> None:
    path.write_bytes(edit(path.read_bytes()))


def other_model(path: Path) -> None:
    weight = np.zeros((4, 4), np.float32)
    write_safetensors(path, {"input_blocks.0.0.weight": weight})


def broken_offsets(data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = next(n for n in header if n != "__metadata__")
    header[name]["shape"] = [3, *header[name]["shape"]]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def test_all_missing_files_are_named_at_once(folder: Path) -> None:
    outcome = ltx2rt("build", "--checkpoint", "a.safetensors", "--gemma", "b", "-o", folder / "b")
    expect_user_error(
        outcome, "--checkpoint a.safetensors: No such", "--gemma b: No such", "`ltx2rt pull`"
    )


def test_a_build_without_upsampler_says_what_will_not_run(demo_model: dict[str, Path]) -> None:
    flags = build_flags(demo_model)
    with pytest.warns(UserWarning, match=r"no --spatial-upsampler.*these will run: one-stage, t"):
        ltx2rt("build", *flags[: flags.index("--spatial-upsampler")], "--dry-run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ltx2rt("build", *flags, "--dry-run").code == 0


BAD_FILES: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("missing", "checkpoint", Path.unlink, "No such file"),
    ("half", "checkpoint", lambda p: overwrite(p, lambda d: d[: len(d) // 2]), "is truncated"),
    ("header", "checkpoint", lambda p: overwrite(p, lambda d: d[:1000]), "is truncated"),
    ("empty", "checkpoint", lambda p: overwrite(p, lambda d: b""), "is an empty file"),
    ("text", "checkpoint", lambda p: overwrite(p, lambda d: b"<html>" * 99), "a login, a licence"),
    ("offsets", "checkpoint", lambda p: overwrite(p, broken_offsets), "is corrupt"),
    ("other", "checkpoint", other_model, "is Stable Diffusion"),
    ("upsampler half", "spatial_upsampler",
     lambda p: overwrite(p, lambda d: d[:-1]), "is truncated"),
    ("upsampler other", "spatial_upsampler", other_model, "is Stable Diffusion"),
    ("no gemma", "gemma", shutil.rmtree, "No such file"),
    ("no tokenizer", "gemma", lambda p: (p / "tokenizer.json").unlink(), "tokenizer.json"),
    ("no config", "gemma", lambda p: (p / "config.json").unlink(), "config.json is missing"),
    ("no weights", "gemma",
     lambda p: [w.unlink() for w in p.glob("*.safetensors")], "model*.safetensors is missing"),
    ("gemma half", "gemma",
     lambda p: [overwrite(w, lambda d: d[:-9]) for w in p.glob("*.safetensors")], "is truncated"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("part", "damage", "said"), [row[1:] for row in BAD_FILES], ids=[row[0] for row in BAD_FILES]
)
def test_bad_files(
    part: str,
    damage: Callable[[Path], object],
    said: str,
    own_model: Model,
    no_export: None,
    folder: Path,
) -> None:
    damage(own_model[part])
    outcome = ltx2rt("build", *build_flags(own_model), "-o", folder / "b", "--json")
    expect_user_error(outcome, said, own_model[part])


def test_missing_parts_are_all_named(demo_model: Model, no_export: None, folder: Path) -> None:
    common = ("build", "-o", folder / "b")
    outcome = ltx2rt(*common, "--checkpoint", demo_model["checkpoint"])
    expect_user_error(outcome, "no Gemma: give --gemma DIR")
    outcome = ltx2rt(*common, "--checkpoint", demo_model["spatial_upsampler"])
    expect_user_error(outcome, "is a spatial upsampler (give it as --spatial-upsampler); ")
    swapped = {**demo_model, "spatial_upsampler": demo_model["checkpoint"]}
    outcome = ltx2rt(*common, *build_flags(swapped))
    expect_user_error(outcome, "is an LTX-2 checkpoint", "expected a spatial upsampler")


def test_loras_that_do_not_fit(
    demo_model: Model, no_export: None, folder: Path, tmp_path: Path
) -> None:
    common = ("build", *build_flags(demo_model), "-o", folder / "b")
    foreign = tmp_path / "wan.safetensors"
    pair = {"lora_A": np.zeros((2, 8), np.float32), "lora_B": np.zeros((8, 2), np.float32)}
    write_safetensors(
        foreign, {f"diffusion_model.blocks.0.self_attn.q.{k}.weight": v for k, v in pair.items()}
    )
    expect_user_error(ltx2rt(*common, "--lora", foreign), foreign)
    wide = tmp_path / "wide.safetensors"
    write_safetensors(wide, {f"diffusion_model.{TO_Q}.{k}.weight": v for k, v in pair.items()})
    expect_user_error(ltx2rt(*common, "--lora", wide), wide, "does not fit this model")
    missing = tmp_path / "none.safetensors"
    expect_user_error(ltx2rt(*common, "--lora", f"{missing}:2"), f"cannot read {missing}")
    expect_user_error(ltx2rt(*common, "--lora", demo_model["checkpoint"]), "LoRA")
    good = write_lora(demo_model, tmp_path / "good.safetensors")
    for strength in ("nan", "inf"):
        outcome = ltx2rt(*common, "--lora", f"{good}:{strength}")
        expect_user_error(outcome, f"strength={strength} of LoRA {good} is not a number")


def test_targets_that_cannot_be(
    demo_model: Model, no_export: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("build", *build_flags(demo_model), "-o")
    expect_user_error(ltx2rt(*common, folder / "no" / "b"), "does not exist; create it first")
    expect_user_error(ltx2rt(*common, folder / "note.txt" / "b"), "does not exist")
    monkeypatch.setattr(os, "access", lambda *_: False)
    expect_user_error(ltx2rt(*common, folder / "b"), f"{folder} is not writable")


def test_rebuild_command_is_a_command(
    own_model: Model, ready_graphs: Export, tmp_path: Path
) -> None:
    """Paths with spaces are quoted, and the command builds the same bundle."""
    first = tmp_path / "first"
    assert ltx2rt("build", *build_flags(own_model), "-o", first, "--quiet").code == 0
    manifest = read_manifest(first)
    words = shlex.split(ltx2rt("inspect", first, "--json").json["rebuild"])
    assert words[:2] == ["ltx2rt", "build"]
    assert ltx2rt(*words[1:], "-o", tmp_path / "second", "--quiet").code == 0
    second = read_manifest(tmp_path / "second")
    assert second == manifest
