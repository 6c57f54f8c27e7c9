"""`ltx2rt lora`: merged files stand for the sum of their parts; names, folders, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltx2rt.cli.__main__ import main
from ltx2rt.errors import CheckpointError, OptionError, UnsupportedError
from ltx2rt.lora.adapter import lora_targets, parse_lora
from ltx2rt.lora.combine import MergeOptions, merge_loras
from ltx2rt.lora.files import Lora, find_lora, open_lora
from ltx2rt.lora.keys import read_lora_keys
from ltx2rt.lora.low_rank import orthogonalize, truncate
from ltx2rt.lora.metadata import detailing_factor, hdr_transfer
from ltx2rt.lora.official_names import known_tensors, official_name
from ltx2rt.lora.tensor_names import stem_of
from ltx2rt.lora.updates import LowRank
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from ltx2rt.weights.safetensors_writer import bfloat16, write_safetensors
from ltx2rt_export.checkpoint import open_model

Q = "transformer_blocks.0.attn1.to_q"
OUT = "transformer_blocks.3.audio_to_video_attn.to_out.0"
GATE = "transformer_blocks.1.attn2.to_gate_logits"
SIZES = {Q: (12, 10), OUT: (9, 14), GATE: (4, 10)}
ALL = tuple(SIZES)


def write_lora(
    path: Path,
    seed: int,
    modules: tuple[str, ...] = ALL,
    rank: int = 2,
    prefix: str = "diffusion_model.",
    **metadata: str,
) -> Path:
    """An official-format LoRA with random factors."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for module in modules:
        out, width = SIZES[module]
        tensors[f"{prefix}{module}.lora_A.weight"] = rng.standard_normal((rank, width), np.float32)
        tensors[f"{prefix}{module}.lora_B.weight"] = rng.standard_normal((out, rank), np.float32)
    write_safetensors(path, tensors, metadata)
    return path


def write_kohya(path: Path, seed: int, alpha: float) -> Path:
    rng = np.random.default_rng(seed)
    tensors = {}
    for module in (Q, OUT):
        name = "lora_unet_" + module.replace(".", "_")
        out, width = SIZES[module]
        tensors[f"{name}.lora_down.weight"] = bfloat16(rng.standard_normal((3, width)))
        tensors[f"{name}.lora_up.weight"] = bfloat16(rng.standard_normal((out, 3)))
        tensors[f"{name}.alpha"] = np.array(alpha, np.float32)
    write_safetensors(path, tensors)
    return path


def deltas(path: Path) -> dict[str, np.ndarray]:
    """Official module -> the file's delta at strength 1, float64."""
    file, maps = SafetensorsFile(path), MappedFiles()
    found = {}
    for (module, field), pair in read_lora_keys(file).updates.items():
        assert isinstance(pair, LowRank)
        up, down = (maps.load(e, "float32").astype(np.float64) for e in (pair.up, pair.down))
        found[stem_of(official_name(module, field) or module)[0]] = pair.scale * (up @ down)
    return found


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Official, kohya with alpha 1 at rank 3, official with another rank and fewer modules."""
    return [
        write_lora(tmp_path / "a.safetensors", 0),
        write_kohya(tmp_path / "b.safetensors", 1, alpha=1.0),
        write_lora(tmp_path / "c.safetensors", 2, (Q, GATE), rank=1),
    ]


STRENGTHS = (0.8, -0.5, 2.0)


def loras(files: list[Path]) -> list[Lora]:
    return [Lora(path=str(f), strength=s) for f, s in zip(files, STRENGTHS, strict=True)]


def test_concat_is_the_sum_of_all_deltas(files: list[Path], tmp_path: Path) -> None:
    merged = merge_loras(loras(files), tmp_path / "out.safetensors")
    assert merged.ranks == {Q: 2 + 3 + 1, OUT: 2 + 3, GATE: 2 + 1}
    got, parts = deltas(merged.path), [deltas(f) for f in files]
    assert got.keys() == SIZES.keys()
    for module, delta in got.items():
        want = sum(s * d[module] for s, d in zip(STRENGTHS, parts, strict=True) if module in d)
        np.testing.assert_allclose(delta, want, atol=1e-6)
    file = SafetensorsFile(merged.path)
    assert file.metadata["merged_from"] == "a.safetensors:0.8; b.safetensors:-0.5; c.safetensors:2"
    # the official format, which every loader reads: no alpha, prefix diffusion_model
    assert all(name.startswith("diffusion_model.transformer_blocks.") for name in file)
    adapter = parse_lora(file, {f"{module}.weight": size for module, size in SIZES.items()})
    assert {stem_of(n)[0]: u.rank for n, u in adapter.updates.items()} == merged.ranks
    assert all(u.scale == 1 for u in adapter.updates.values())


def test_alphas_count_unless_they_are_ignored(tmp_path: Path) -> None:
    """4 / rank 2 under the official names too."""
    plain = write_lora(tmp_path / "plain.safetensors", 0, (Q,))
    file, maps = SafetensorsFile(plain), MappedFiles()
    tensors = {name: maps.raw(entry) for name, entry in file.items()}
    tensors[f"diffusion_model.{Q}.alpha"] = np.array(4, np.float32)
    write_safetensors(tmp_path / "alpha.safetensors", tensors)
    lora = [Lora(path=str(tmp_path / "alpha.safetensors"), strength=1.0)]
    for ignored, scale in ((True, 1), (False, 2)):
        options = MergeOptions(ignore_alpha=ignored)
        merged = merge_loras(lora, tmp_path / f"{ignored}.safetensors", options)
        np.testing.assert_allclose(deltas(merged.path)[Q], scale * deltas(plain)[Q], rtol=1e-6)


def test_strength_zero_is_left_out(files: list[Path], tmp_path: Path) -> None:
    chosen = [Lora(path=str(files[0]), strength=0.5), Lora(path="not read", strength=0.0)]
    assert merge_loras(chosen, tmp_path / "o.safetensors").ranks == dict.fromkeys(SIZES, 2)


def test_orthogonal_deltas_share_no_input_and_no_output(files: list[Path], tmp_path: Path) -> None:
    merge_loras(
        loras(files), tmp_path / "out.safetensors", options=MergeOptions(method="orthogonal")
    )
    file, maps = SafetensorsFile(tmp_path / "out.safetensors"), MappedFiles()
    down = maps.load(file[f"diffusion_model.{Q}.lora_A.weight"], "float32")
    up = maps.load(file[f"diffusion_model.{Q}.lora_B.weight"], "float32")
    parts = [slice(0, 2), slice(2, 5), slice(5, 6)]
    own = [up[:, p].astype(np.float64) @ down[p] for p in parts]
    np.testing.assert_allclose(own[0], 0.8 * deltas(files[0])[Q], atol=1e-6)
    for i, first in enumerate(own):
        for second in own[i + 1 :]:
            np.testing.assert_allclose(first.T @ second, 0, atol=1e-5)
            np.testing.assert_allclose(first @ second.T, 0, atol=1e-5)
    # what was taken out lay inside what earlier LoRAs write or read
    removed = -0.5 * deltas(files[1])[Q] - own[1]
    u, v = np.linalg.svd(own[0])[0][:, :2], np.linalg.svd(own[0])[2][:2].T
    outside = (np.eye(12) - u @ u.T) @ removed @ (np.eye(10) - v @ v.T)
    np.testing.assert_allclose(outside, 0, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 99), st.lists(st.integers(1, 4), min_size=2, max_size=4))
def test_orthogonalize_properties(seed: int, ranks: list[int]) -> None:
    """The first is kept; later ones are orthogonal to all before; doing it twice changes nothing;
    a copy of an earlier one disappears.
    """
    rng = np.random.default_rng(seed)
    downs = [rng.standard_normal((r, 20), np.float32) for r in ranks]
    ups = [rng.standard_normal((24, r), np.float32) for r in ranks]
    new_downs, new_ups = orthogonalize(downs, ups)
    np.testing.assert_array_equal(new_downs[0], downs[0])
    np.testing.assert_array_equal(new_ups[0], ups[0])
    for i in range(len(ranks)):
        for j in range(i):
            np.testing.assert_allclose(new_ups[i].T @ new_ups[j], 0, atol=1e-4)
            np.testing.assert_allclose(new_downs[i] @ new_downs[j].T, 0, atol=1e-4)
    again = orthogonalize(new_downs, new_ups)
    np.testing.assert_allclose(again[0][-1], new_downs[-1], atol=1e-4)
    twice_downs, twice_ups = orthogonalize([downs[0], downs[0]], [ups[0], -2 * ups[0]])
    assert np.abs(twice_ups[1] @ twice_downs[1]).max() < 1e-6


def test_disjoint_loras_merge_alike_in_both_ways(tmp_path: Path) -> None:
    down, up = np.eye(6, 10, dtype=np.float32), np.eye(12, 6, dtype=np.float32)
    parts = [slice(0, 2), slice(2, 3), slice(3, 6)]
    got = orthogonalize([down[p] for p in parts], [up[:, p] for p in parts])
    np.testing.assert_array_equal(np.concatenate(got[0]), down)
    np.testing.assert_array_equal(np.concatenate(got[1], axis=1), up)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 6))
def test_truncation_is_the_best_approximation(seed: int, total: int, rank: int) -> None:
    rank = min(rank, total)
    rng = np.random.default_rng(seed)
    down, up = rng.standard_normal((total, 15)), rng.standard_normal((11, total))
    values = np.linalg.svd(up @ down, compute_uv=False)
    new_down, new_up = truncate(down, up, rank)
    assert (new_down.shape, new_up.shape) == ((rank, 15), (11, rank))
    error = np.linalg.norm(up @ down - new_up.astype(np.float64) @ new_down)
    np.testing.assert_allclose(error, np.linalg.norm(values[rank:]), rtol=1e-4, atol=1e-5)


def test_rank_limits_every_module(files: list[Path], tmp_path: Path) -> None:
    full = merge_loras(loras(files), tmp_path / "full.safetensors")
    small = merge_loras(
        loras(files), tmp_path / "small.safetensors", MergeOptions(rank=3, dtype="bfloat16")
    )
    assert small.ranks == dict.fromkeys(SIZES, 3)
    assert SafetensorsFile(small.path).metadata["lora_rank"] == "3"
    exact, kept = deltas(full.path), deltas(small.path)
    np.testing.assert_allclose(kept[GATE], exact[GATE], atol=0.05)  # rank 3 is all it has
    values = np.linalg.svd(exact[Q], compute_uv=False)
    error = np.linalg.norm(kept[Q] - exact[Q])
    assert np.linalg.norm(values[3:]) <= error <= np.linalg.norm(values[3:]) + 0.2


def test_reference_factors_are_kept(tmp_path: Path) -> None:
    one = write_lora(tmp_path / "ic.safetensors", 0, reference_downscale_factor="2")
    two = write_lora(tmp_path / "style.safetensors", 1)
    both = [Lora(path=str(p), strength=1.0) for p in (one, two)]
    merged = merge_loras(both, tmp_path / "o.safetensors")
    assert SafetensorsFile(merged.path).metadata["reference_downscale_factor"] == "2"
    other = write_lora(tmp_path / "ic4.safetensors", 1, reference_downscale_factor="4")
    with pytest.raises(OptionError, match="different spatial reference factors"):
        merge_loras([*both, Lora(path=str(other), strength=1.0)], tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_what_a_lora_is_used_for_is_kept(tmp_path: Path) -> None:
    """The HDR curve, and a reference of full size, where half is the default."""
    hdr = write_lora(tmp_path / "hdr.safetensors", 0, use_hdr_transform="ACEScct")
    same = write_lora(tmp_path / "same.safetensors", 1, reference_downscale_factor="1")
    both = [Lora(path=str(p), strength=1.0) for p in (hdr, same)]
    merged = SafetensorsFile(merge_loras(both, tmp_path / "o.safetensors").path)
    assert hdr_transfer([merged]) == "acescct"
    assert detailing_factor(merged) == 1
    other = write_lora(tmp_path / "log.safetensors", 1, hdr_transform="logc3")
    with pytest.raises(OptionError, match="the LoRAs name the HDR curves acescct, logc3"):
        merge_loras([*both, Lora(path=str(other), strength=1.0)], tmp_path / "x.safetensors")
    plain = merge_loras(both[1:] * 2, tmp_path / "p.safetensors").path
    assert "hdr_transform" not in SafetensorsFile(plain).metadata


def test_all_problems_of_a_merge_are_listed(tmp_path: Path) -> None:
    one = write_lora(tmp_path / "one.safetensors", 0, (Q,))
    rng = np.random.default_rng(0)
    tensors = {
        f"diffusion_model.{Q}.lora_A.weight": rng.standard_normal((2, 11)),
        f"diffusion_model.{Q}.lora_B.weight": rng.standard_normal((12, 2)),
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight": rng.standard_normal((2, 11)),
        "diffusion_model.blocks.0.self_attn.q.lora_B.weight": rng.standard_normal((12, 2)),
        f"diffusion_model.{GATE}.lora_A.weight": rng.standard_normal((2, 11)),
    }
    write_safetensors(tmp_path / "two.safetensors", tensors)
    both = [Lora(path=str(p), strength=1.0) for p in (one, tmp_path / "two.safetensors")]
    with pytest.raises(CheckpointError) as error:
        merge_loras(both, tmp_path / "o.safetensors")
    for part in (
        "3 problems",
        "two.safetensors: diffusion_model.blocks.0.self_attn.q is not a module",
        "attn2.to_gate_logits has only its down half",
        f"{Q} is [12, 10] and [12, 11] in different files",
    ):
        assert part in str(error.value)
    old = write_lora(tmp_path / "ltx-2-19b.safetensors", 0, (Q,))
    new = write_lora(tmp_path / "ltx-2.5.safetensors", 0, (Q,))
    mixed = [Lora(path=str(p), strength=1.0) for p in (old, new)]
    with pytest.raises(CheckpointError, match=r"different models.*LTX-2, .*LTX-2\.5"):
        merge_loras(mixed, tmp_path / "o.safetensors")
    with pytest.raises(OptionError, match=r"(?s)3 problems.*method='x'.*rank=0.*dtype='int8'"):
        merge_loras(
            both, tmp_path / "o.safetensors", MergeOptions(method="x", rank=0, dtype="int8")
        )
    with pytest.raises(OptionError, match="no LoRA has a strength other than 0"):
        merge_loras([Lora(path="a", strength=0.0)], tmp_path / "o.safetensors")
    with pytest.raises(OptionError, match="strength=nan"):
        merge_loras([Lora(path=str(one), strength=float("nan"))], tmp_path / "o.safetensors")
    write_safetensors(tmp_path / "d.safetensors", {f"{Q}.ia3_l": np.ones(3, np.float32)})
    with pytest.raises(UnsupportedError, match=r"\(IA\)\^3"):
        merge_loras(
            [Lora(path=str(tmp_path / "d.safetensors"), strength=1.0)], tmp_path / "o.safetensors"
        )


def test_every_tensor_of_the_model_has_its_name(demo_model: dict[str, Path]) -> None:
    model = open_model(**demo_model)
    targets = lora_targets(model.tensors("transformer"), model.tensors("text"))
    assert set(targets) <= known_tensors()
    for tensor in targets:
        name, field = stem_of(tensor)
        assert official_name(f"lora_unet_{name.replace('.', '_')}", field) == tensor
        assert official_name(f"diffusion_model.{name}", field) == tensor
    assert official_name("transformer.proj_in") == "patchify_proj.weight"
    assert official_name("lora_unet_down_blocks_0") is None


def test_a_folder_gives_its_only_file(tmp_path: Path) -> None:
    one = write_lora(tmp_path / "b.safetensors", 0)
    (tmp_path / "notes.txt").write_text("x")
    assert find_lora(tmp_path) == one
    assert find_lora(one) == one
    write_lora(tmp_path / "a.safetensors", 0)
    with pytest.raises(
        CheckpointError, match=r"with 2 LoRA files \(a\.safetensors, b\.safetensors\): name one"
    ):
        find_lora(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"without a \.safetensors file"):
        find_lora(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="cannot read"):
        open_lora("a\0b")


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def test_merge_command(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    named = [f"{f}:{s}" for f, s in zip(files, STRENGTHS, strict=True)]
    assert run("lora", "merge", *named, "-o", out, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["modules"], report["ranks"]) == (3, {"3": 1, "5": 1, "6": 1})
    assert report["bytes"] == out.stat().st_size
    for arguments, message in (
        ((named[0], "-o", out), "exists; pass --force"),
        ((named[0], "-o", files[1]), "exists; pass --force"),
        ((named[0], "-o", files[0], "--force"), "it is one of the files to merge"),
        ((named[0], "-o", tmp_path / "no" / "o.safetensors"), "its folder does not exist"),
        ((named[0], "-o", tmp_path / "o.bin"), "ends in .safetensors"),
        ((tmp_path / "absent", "-o", tmp_path / "o.safetensors"), "cannot read"),
    ):
        assert run("lora", "merge", *arguments) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""
    assert run("lora", "merge", named[0], "-o", out, "--force", "--method", "orthogonal") == 0
    assert "3 modules, rank 2, orthogonal of 1 LoRAs" in capsys.readouterr().out


def test_info_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my lora"
    folder.mkdir()
    write_lora(
        folder / "ltx-2.3-ic.safetensors", 0, reference_downscale_factor="2", author="a\x1b[1m",
        license="x" * 10_000,
    )  # fmt: skip
    assert run("lora", "info", folder, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fits"] == ["LTX-2.3"]
    assert (report["ranks"], report["target_modules"]) == ([2], 3)
    assert report["reference_downscale_factor"] == 2
    assert report["metadata"] == {"author": "a\x1b[1m", "reference_downscale_factor": "2"}
    assert run("lora", "info", folder) == 0
    out = capsys.readouterr().out
    assert "official / ComfyUI" in out
    assert "\x1b" not in out
    write_safetensors(tmp_path / "latents.safetensors", {"video": np.zeros(3, np.float32)})
    assert run("lora", "info", tmp_path / "latents.safetensors", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == ["it holds no LoRA; `ltx2rt inspect` explains other files"]


@pytest.mark.parametrize(
    ("flags", "shares"),
    [
        ((), (0.9025, 0.0475, 0.05)),
        (("--ema-decay", "0.5", "--ema-last-decay", "0.8"), (0.4, 0.4, 0.2)),
        (("--ema-sigma", "0.2"), None),
    ],
)
def test_steps_of_one_training_are_averaged(
    flags: tuple[str, ...], shares: tuple[float, ...] | None, tmp_path: Path
) -> None:
    """As musubi-tuner's post-hoc EMA: factor by factor, the oldest first; the power function leaves
    the first file out.
    """
    paths = [write_lora(tmp_path / f"{i}.safetensors", i) for i in range(3)]
    out = tmp_path / "ema.safetensors"
    assert main(["lora", "merge", *map(str, paths), "--method", "ema", *flags, "-o", str(out)]) == 0
    files, maps = [SafetensorsFile(path) for path in (*paths, out)], MappedFiles()
    assert files[3].keys() == files[0].keys()
    if shares is None:
        gamma = max(np.roots([1, 7, 16 - 25, 12 - 25]).real)
        second = 0.5 ** (gamma + 1)
        shares = 0, second, 1 - second
    for name, entry in files[3].items():
        parts = [maps.load(file[name], "float32") for file in files[:3]]
        want = sum(share * part for share, part in zip(shares, parts, strict=True))
        np.testing.assert_allclose(maps.load(entry, "float32"), want, rtol=1e-5, atol=1e-6)


def test_what_are_no_steps_of_one_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_lora(tmp_path / "1.safetensors", 1)
    other = write_lora(tmp_path / "2.safetensors", 2, rank=3)
    fewer = write_lora(tmp_path / "3.safetensors", 3, modules=(Q,))
    ema, out = MergeOptions(method="ema"), tmp_path / "o.safetensors"
    for second, message in ((other, "other ranks or scales"), (fewer, "not changed alike")):
        with pytest.raises(CheckpointError, match=message):
            merge_loras([Lora(path=str(one)), Lora(path=str(second))], out, ema)
    with pytest.raises(OptionError, match="leave strengths out"):
        merge_loras([Lora(path=str(one), strength=0.5), Lora(path=str(one))], out, ema)
    for bad in ({"ema_decay": 1.0}, {"ema_last_decay": -0.1}, {"ema_sigma": 0.3}):
        with pytest.raises(OptionError, match=next(iter(bad))):
            merge_loras([Lora(path=str(one))], out, MergeOptions(method="ema", **bad))
    assert main(["lora", "merge", str(one), "--ema-decay", "0.5", "-o", str(out)]) == 2
    assert "go with --method ema" in capsys.readouterr().err
    assert not out.exists()
