"""LoRAs merged at run time: the base stays as it is, and merging equals fusing at build time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.bundle.loader import Loader
from ltx2rt.config import GenerationConfig, RuntimeConfig
from ltx2rt.engine import Array
from ltx2rt.errors import CheckpointError
from ltx2rt.lora.adapter import (
    collect_updates,
    fuse_entry,
    lora_targets,
    official_tensor,
    parse_lora,
)
from ltx2rt.lora.combine import merge_loras
from ltx2rt.lora.files import Lora
from ltx2rt.names import TRANSFORMER
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export.checkpoint import open_model
from tests.parity.command_line import build_flags, ltx2rt, use_graphs_of
from tests.parity.demo_loras import STYLES, restyle_lora, write_demo_lora

SMALL = GenerationConfig(prompt="a lake", seed=3, height=64, width=64, num_frames=9, tiling="none")
RUNTIME = RuntimeConfig(threads=1)


@pytest.fixture(scope="module")
def loras(demo_model: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Lora]:
    folder = tmp_path_factory.mktemp("loras")
    return [
        Lora(path=str(write_demo_lora(folder / f"{i}.safetensors", demo_model, i)), strength=s)
        for i, s in enumerate((0.8, -0.5))
    ]


@pytest.fixture
def bundle(demo_bundle: Path) -> Bundle:
    return open_bundle(demo_bundle)


def weights(bundle: Bundle, loras: Sequence[Lora] = ()) -> dict[str, Array]:
    """Every block weight, and what head and tail are loaded with."""
    loader = Loader(bundle)
    return {
        f"{name}.{index}.{weight}": array
        for name in TRANSFORMER
        for index in range(len(bundle.component(name).layers))
        for weight, array in loader.weights(name, index, loras).items()
    }


def assert_equal(got: dict[str, Array], want: dict[str, Array]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_another_set_of_loras_leaves_no_trace(bundle: Bundle, loras: list[Lora]) -> None:
    plain = weights(bundle)
    with_a = weights(bundle, loras[:1])
    with_b = weights(bundle, loras[1:])
    assert sum(not np.array_equal(with_a[n], plain[n]) for n in plain) == 34 * 3 + 28
    assert sum(not np.array_equal(with_b[n], with_a[n]) for n in plain) == 34 * 3 + 28
    assert_equal(weights(bundle), plain)
    assert_equal(weights(bundle, loras[:1]), with_a)
    assert_equal(weights(bundle, [Lora(path="not read", strength=0.0)]), plain)


def test_merged_weights_follow_the_official_recipe(
    bundle: Bundle, loras: list[Lora], demo_model: dict[str, Path]
) -> None:
    tensors = open_model(**demo_model).tensors("transformer")
    targets = lora_targets(tensors)
    updates = collect_updates(
        (parse_lora(SafetensorsFile(x.path), targets), x.strength) for x in loras
    )
    entry = bundle.component("transformer_block")
    files = MappedFiles()
    loader = Loader(bundle)
    for index in entry.served:
        for name, got in loader.weights("transformer_block", index, loras).items():
            official = official_tensor("transformer_block", index, name)
            if official not in updates:
                continue
            want = fuse_entry(files, tensors[official], updates[official])
            np.testing.assert_array_equal(got.T if name in entry.transposed else got, want)


def test_pipeline_changes_loras_between_clips(bundle: Bundle, loras: list[Lora]) -> None:
    """none -> A -> B -> none on one resident pipeline equals fresh pipelines, bit for bit."""
    requests = {"none": (), "a": tuple(loras[:1]), "b": tuple(loras[1:])}
    fresh = {}
    for name, chosen in requests.items():
        with DistilledPipeline(bundle, RUNTIME) as pipe:
            fresh[name] = pipe(_with(chosen)).video_latent
    assert np.abs(fresh["a"] - fresh["none"]).max() > 1e-3
    assert np.abs(fresh["b"] - fresh["a"]).max() > 1e-3
    with DistilledPipeline(bundle, RuntimeConfig(threads=1, residency="resident")) as pipe:
        for name in ("none", "a", "b", "none"):
            np.testing.assert_array_equal(pipe(_with(requests[name])).video_latent, fresh[name])


def test_stage_2_has_loras_of_its_own(bundle: Bundle, loras: list[Lora]) -> None:
    """Another strength in stage 2 alone: what stage 1 makes stays as it is, bit for bit."""
    first = _with(loras[:1])
    weaker = replace(first, stage_2_loras=(replace(loras[0], strength=0.2), loras[1]))
    with DistilledPipeline(bundle, RUNTIME) as pipe:
        same, other, none = (
            pipe(config).latents
            for config in (
                replace(first, stage_2_loras=first.loras),
                weaker,
                replace(first, stage_2_loras=()),
            )
        )
        plain = pipe(first).latents
        kept = pipe(weaker).record
    for name in plain:
        np.testing.assert_array_equal(same[name], plain[name])
    np.testing.assert_array_equal(other["stage_1.video"], plain["stage_1.video"])
    for a, b in ((other, plain), (none, plain), (none, other)):
        assert np.abs(a["stage_2.video"] - b["stage_2.video"]).max() > 1e-3
    files = [lora.path for lora in loras]
    assert kept.stages["stage_1"]["loras"] == [f"{files[0]}:0.8"]
    assert kept.stages["stage_2"]["loras"] == [f"{files[0]}:0.2", f"{files[1]}:-0.5"]
    assert kept.request.config == weaker


@pytest.mark.parametrize("style", STYLES)
def test_every_key_style_loads_at_run_time_and_at_build_time(
    style: str,
    bundle: Bundle,
    demo_model: dict[str, Path],
    demo_bundle: Path,
    loras: list[Lora],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given as a folder, at a negative strength: the same as the official file at strength times
    alpha/rank, both ways.
    """
    official = Path(loras[0].path)
    folder = restyle_lora(official, tmp_path / style, style)
    want = weights(bundle, [Lora(path=str(official), strength=-0.5 * STYLES[style])])
    assert_equal(weights(bundle, [Lora(path=str(folder), strength=-0.5)]), want)
    use_graphs_of(demo_bundle, monkeypatch)
    target = tmp_path / "built"
    lora = ["--lora", f"{folder}:-0.5"]
    assert ltx2rt("build", "--quiet", *build_flags(demo_model), *lora, "-o", target).code == 0
    assert_equal(weights(open_bundle(target)), want)


def test_a_merged_file_does_what_its_parts_do(
    bundle: Bundle, loras: list[Lora], tmp_path: Path
) -> None:
    """Fusion rounds factors and deltas to bfloat16: equal but for that."""
    merged = merge_loras(loras, tmp_path / "merged.safetensors")
    got = weights(bundle, [Lora(path=str(merged.path), strength=1.0)])
    for name, want in weights(bundle, loras).items():
        np.testing.assert_allclose(got[name], want, atol=0.05, rtol=2**-7, err_msg=name)
        if not np.array_equal(got[name], want):
            assert np.linalg.norm(got[name] - want) < 0.01 * np.linalg.norm(want), name


def test_an_ambiguous_folder_lists_its_files(bundle: Bundle, loras: list[Lora]) -> None:
    folder = Path(loras[0].path).parent
    with DistilledPipeline(bundle, RUNTIME) as pipe:
        with pytest.raises(CheckpointError, match=r"2 LoRA files \(0\.safetensors, 1\.safetensors"):
            pipe(_with((Lora(path=str(folder), strength=1.0),)))
        assert not pipe.engines._engines
        assert not pipe.engines._stacks


def test_a_lora_of_another_model_is_refused_before_work(bundle: Bundle, tmp_path: Path) -> None:
    write_safetensors(
        tmp_path / "other.safetensors",
        {
            f"diffusion_model.blocks.0.self_attn.q.lora_{half}.weight": np.zeros((4, 4), np.float32)
            for half in "AB"
        },
    )
    path = str(tmp_path / "other.safetensors")
    with DistilledPipeline(bundle, RUNTIME) as pipe:
        with pytest.raises(CheckpointError, match=r"does not fit this model.*no module"):
            pipe(_with((Lora(path=path, strength=1.0),)))
        with pytest.raises(CheckpointError, match="cannot read"):
            pipe(_with((Lora(path=str(tmp_path / "absent"), strength=1.0),)))
        assert not pipe.engines._engines
        assert not pipe.engines._stacks


def _with(loras: tuple[Lora, ...]) -> GenerationConfig:
    return replace(SMALL, loras=loras)
