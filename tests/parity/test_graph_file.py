"""`ltx2rt graph`: the file stands alone, and computes what the bundle computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import ltx2rt
from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.bundle.loader import Loader
from ltx2rt.config import RuntimeConfig
from tests.parity.command_line import expect_user_error
from tests.parity.command_line import ltx2rt as command


def test_a_bundle_is_built_from_python(demo_model: dict[str, Path], tmp_path: Path) -> None:
    seen: list[ltx2rt.Progress] = []
    names = ("text_head", "transformer_tail")
    bundle = ltx2rt.build(
        tmp_path / "b", **demo_model, components=names, card="cpu", callback=seen.append
    )
    assert set(bundle.manifest.components) == set(names)
    assert bundle.manifest.precision == "fp32"
    assert [p.stage for p in seen[:1]] == ["export"]
    with pytest.raises(ltx2rt.OptionError, match="pass --force"):
        ltx2rt.build(tmp_path / "b", **demo_model)
    with pytest.raises(ltx2rt.OptionError, match="did you mean 'rtx4090'"):
        ltx2rt.build(tmp_path / "c", **demo_model, card="rtx4091")


def test_a_file_with_weights_computes_the_same(demo_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "tail.onnx"
    outcome = command("graph", demo_bundle, "transformer_tail", "-o", target, "--weights", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["files"] == [str(target), f"{target}.data"]
    onnx.checker.check_model(str(target))
    rng = np.random.default_rng(0)
    loader, runtime = Loader(open_bundle(demo_bundle)), RuntimeConfig()
    with loader.engine("transformer_tail", runtime) as engine:
        sizes = {"B": 1, "Tv": 5, "Ta": 4, "Uv": 1, "Ua": 1}
        feeds = {}
        for spec in engine.spec.inputs:
            shape = [d if isinstance(d, int) else sizes[d] for d in spec.shape]
            feeds[spec.name] = (
                np.zeros(shape, np.int64)
                if spec.dtype == "int64"
                else rng.standard_normal(shape).astype(np.float32)
            )
        want = engine(feeds)
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    for name, got in zip(names, session.run(None, feeds), strict=True):
        np.testing.assert_allclose(got, want[name], rtol=1e-5, atol=1e-5)


def test_a_layer_of_the_block_with_weights_and_without(demo_bundle: Path, tmp_path: Path) -> None:
    entry = open_bundle(demo_bundle).component("transformer_block")
    target = tmp_path / "block.onnx"
    assert command("graph", demo_bundle, "transformer_block", "-o", target).code == 0
    inputs = {v.name for v in onnx.load(str(target)).graph.input}
    assert inputs == {*(t.name for t in entry.inputs), *entry.layers[0]}
    assert not Path(f"{target}.data").exists()
    digests = set()
    for layer in (0, 2):
        request = ("graph", demo_bundle, "transformer_block", "-o", target, "--weights")
        assert command(*request, "--layer", layer).code == 0
        inputs = {v.name for v in onnx.load(str(target)).graph.input}
        assert inputs == {t.name for t in entry.inputs}
        digests.add(Path(f"{target}.data").read_bytes())
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("vocodr", "-o", "x.onnx"), "no component 'vocodr'; did you mean 'vocoder'?"),
        (("temporal_upsampler", "-o", "x.onnx"), "Build it again with the file that holds"),
        (("vocoder", "-o", "x.bin"), "does not end in .onnx"),
        (("vocoder", "-o", "none/x.onnx"), "create it first"),
        (("vocoder", "-o", "x.onnx", "--layer", 3), "layer 3 is not one of vocoder's"),
    ],
)
def test_bad_requests(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    expect_user_error(command("graph", demo_bundle, *arguments), said)
    assert not list(tmp_path.iterdir())
