"""The text encoder in 8 bits: `--text-precision`, through the command line, against float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.bundle.loader import Loader
from ltx2rt.bundle.memory import layer_bytes
from ltx2rt.components.embeddings import write_embeddings
from ltx2rt.components.text_encoder import PromptEncoder, TextContext, TextEncoder
from ltx2rt.components.tokenizer import Tokenizer
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import OptionError, UnsupportedError
from ltx2rt.names import (
    LANGUAGE_HEAD,
    TEXT_BLOCK,
    TEXT_HEAD,
    TEXT_STACK,
    TEXT_TAIL,
    TRANSFORMER_BLOCK,
)
from ltx2rt.results.latent_file import LatentFile
from ltx2rt_export.build_config import BuildConfig
from tests.parity.command_line import build_flags, expect_user_error, use_graphs_of
from tests.parity.command_line import ltx2rt as command
from tests.tolerances import TEXT_PRECISION_REL_RMS

PROMPTS = ("A red balloon drifts slowly over the quiet harbour.", "rain")


def contexts_of(bundle: Path) -> TextContext:
    opened = open_bundle(bundle)
    tokenizer = Tokenizer.from_file(bundle / "text/tokenizer.json")
    stack = Loader(opened).stack(TEXT_STACK, RuntimeConfig(threads=1))
    try:
        return PromptEncoder(tokenizer, TextEncoder(stack))(PROMPTS)
    finally:
        stack.close()


@pytest.fixture(scope="module")
def want(demo_bundle: Path) -> TextContext:
    return contexts_of(demo_bundle)


@pytest.mark.parametrize("precision", ["fp8", "int8-wo"])
def test_contexts_of_a_quantised_text_encoder(
    precision: str,
    demo_bundle: Path,
    demo_model: dict[str, Path],
    want: TextContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_graphs_of(demo_bundle, monkeypatch)
    target = tmp_path / "small.bundle"
    parts = ",".join((TEXT_HEAD, TEXT_BLOCK, TEXT_TAIL))
    flags = ("--text-precision", precision, "--components", parts, "-o", target, "--quiet")
    outcome = command("build", *build_flags(demo_model), *flags)
    assert outcome.code == 0, outcome.err
    got = contexts_of(target)
    for name in ("video", "audio"):
        ours, theirs = getattr(got, name), getattr(want, name)
        error = np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2))
        assert 1e-4 < error <= TEXT_PRECISION_REL_RMS[precision], (name, error)
    manifest = open_bundle(target).manifest
    entries = manifest.components
    assert {n: entries[n].precision for n in (TEXT_HEAD, TEXT_BLOCK, TEXT_TAIL)} == {
        TEXT_HEAD: "fp32", TEXT_BLOCK: precision, TEXT_TAIL: "int8-wo",
    }  # fmt: skip
    assert f"--text-precision {precision}" in manifest.command()
    whole = layer_bytes(open_bundle(demo_bundle).component(TEXT_BLOCK))
    small = layer_bytes(entries[TEXT_BLOCK])
    assert max(small) < 0.3 * min(whole)  # a byte a weight instead of four


def test_what_no_text_encoder_has_is_refused(demo_model: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=r"text_precision='nvfp4'; allowed: fp8, int8-wo, int4-wo"
    ):
        BuildConfig(text_precision="nvfp4")
    with pytest.raises(OptionError, match="runs no int4-wo; allowed: fp8, int8-wo"):
        BuildConfig(text_precision="int4-wo")
    with pytest.raises(UnsupportedError, match="precision='fp8' needs sm89"):
        BuildConfig(
            backend="tensorrt-rtx", precision="bf16", text_precision="fp8", target=("sm86",)
        )
    config = BuildConfig(backend="tensorrt-rtx", precision="fp16", text_precision="int8-wo")
    assert config.asked(TEXT_TAIL) == "int8-wo"
    assert config.asked(TRANSFORMER_BLOCK) == "fp16"
    outcome = command(
        "build", *build_flags(demo_model), "--text-precision", "fp7", "-o", tmp_path / "b"
    )
    expect_user_error(outcome, "text_precision='fp7'")


def test_a_bundle_without_a_text_encoder_needs_none(
    demo_bundle: Path,
    demo_model: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompts come as contexts; nobody has to have Gemma."""
    use_graphs_of(demo_bundle, monkeypatch)
    parts = sorted(_parts_without_text(demo_bundle))
    flags = ("--checkpoint", demo_model["checkpoint"], "-o", tmp_path / "b", "--quiet")
    upsampler = ("--spatial-upsampler", demo_model["spatial_upsampler"])
    outcome = command("build", *flags, *upsampler, "--components", ",".join(parts))
    assert outcome.code == 0, outcome.err
    small = open_bundle(tmp_path / "b")
    assert (small.manifest.tokenizer, small.text_encoder_id) == ("", "")
    assert not (tmp_path / "b/text").exists() or not any((tmp_path / "b/text").iterdir())
    write_embeddings(tmp_path / "e.safetensors", contexts_of(demo_bundle), PROMPTS, "")
    latents = []
    for bundle in (tmp_path / "b", demo_bundle):
        target = tmp_path / f"{len(latents)}.safetensors"
        outcome = command(
            "generate", bundle, "--embeddings", tmp_path / "e.safetensors", "--size", "64x64",
            "--num-frames", 9, "--threads", 1, "--quiet", "--save-latents", target,
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        latents.append(LatentFile(target).read("stage_2.video"))
    np.testing.assert_array_equal(*latents)
    outcome = command("generate", tmp_path / "b", "-p", "a", "-o", tmp_path / "x.mp4")
    expect_user_error(outcome, "text_head")
    more = command("build", *flags[:2], "--components", "text_head,vocoder", "-o", tmp_path / "c")
    expect_user_error(more, "no Gemma: give --gemma DIR")
    every = command("build", *flags[:2], "-o", tmp_path / "c")
    expect_user_error(every, "no Gemma: give --gemma DIR")


def _parts_without_text(bundle: Path) -> set[str]:
    return open_bundle(bundle).manifest.components.keys() - {*TEXT_STACK.components, LANGUAGE_HEAD}
