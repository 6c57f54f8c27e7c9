"""The transformer against the specification's hash-generated vectors, and its own variants."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from ltx2rt.components.transformer import ModalityInput, Perturbations
from ltx2rt.errors import CheckpointError, OptionError, ShapeError, UnsupportedError
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt_export.modules.transformer import transformer_block
from ltx2rt_export.modules.transformer_config import TransformerConfig
from tests.parity import tiny_transformer as tiny
from tests.tolerances import TOLERANCES

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "golden_tiny_transformer.json").read_text()
)
DIT = TOLERANCES["dit"]
Files = dict[str, SafetensorsFile]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("transformer")
    return {
        g: tiny.write_checkpoint(folder / f"{g}.safetensors", tiny.tiny_config(g))
        for g in tiny.GENERATIONS
    }


def case_inputs(
    generation: str, run: str
) -> tuple[ModalityInput | None, ModalityInput | None, Perturbations]:
    streams = tiny.inputs(tiny.tiny_config(generation))
    video, audio = streams["video"], streams["audio"]
    if run == "masked_stg":
        mask = np.ones((2, 18, 18), np.float32)
        mask[:, :12, 12:], mask[:, 12:, :12] = 0.5, 0
        skipped = Perturbations().and_skip("video_self", [1], [1]).and_skip("audio_self", [1], [1])
        skipped = skipped.and_skip("audio_to_video", [0], [1])
        return dataclasses.replace(video, attention_mask=mask), audio, skipped
    if run == "audio_frozen_ctx":
        return video, dataclasses.replace(audio, enabled=False), Perturbations()
    return (
        None if run == "audio_only" else video,
        None if run == "video_only" else audio,
        Perturbations(),
    )


def test_generator_matches_the_specification() -> None:
    want = GOLDEN["gen_check"]["in.video.latent[0:4] amp1.5"]
    got = tiny.gen("in.video.latent", (2, 18, 16), 1.5).reshape(-1)[:4]
    np.testing.assert_allclose(got, want, rtol=1e-6)  # nine printed digits


@pytest.mark.parametrize("name", list(GOLDEN["transformer"]))
def test_specification_vectors(name: str, files: Files) -> None:
    generation, run = name.split("/")
    video, audio, skipped = case_inputs(generation, run)
    velocities = tiny.torch_transformer(files[generation])(video, audio, skipped)
    for stream, velocity in zip(("video", "audio"), velocities, strict=True):
        want = GOLDEN["transformer"][name][stream]
        assert (want is None) == (velocity is None)
        if velocity is None:
            continue
        flat = velocity.reshape(2, -1)
        assert np.linalg.norm(velocity) == pytest.approx(want["l2"], rel=DIT.rtol)
        for got, key in ((flat[0, :8], "first8_sample0"), (flat[1, -8:], "last8_sample1")):
            np.testing.assert_allclose(got, want[key], rtol=DIT.rtol, atol=DIT.atol)


@pytest.mark.parametrize("generation", tiny.GENERATIONS)
@pytest.mark.parametrize("name", ["video", "audio"])
def test_one_stream_engines_equal_the_stand_in_token(
    generation: str, name: str, files: Files
) -> None:
    streams = {
        k: v if k == name else None for k, v in tiny.inputs(tiny.tiny_config(generation)).items()
    }
    index = ("video", "audio").index(name)
    both = tiny.torch_transformer(files[generation])(streams["video"], streams["audio"])
    one = tiny.torch_transformer(files[generation], name)(streams["video"], streams["audio"])
    # the same operations on the same numbers, in other batches of rows
    np.testing.assert_allclose(one[index], both[index], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("generation", tiny.GENERATIONS)
def test_configuration_is_read_from_tensors(generation: str, files: Files) -> None:
    assert TransformerConfig.from_checkpoint({"num_attention_heads": 4}, files["2.3"]).heads == 4
    read = TransformerConfig.from_checkpoint(tiny.METADATA, files[generation])
    assert read == tiny.tiny_config(generation)


def test_all_unsupported_values_are_named(files: Files) -> None:
    config = {**tiny.METADATA, "qk_norm": "layer_norm", "share_ff": True, "rope_type": "other"}
    with pytest.raises(UnsupportedError) as caught:
        TransformerConfig.from_checkpoint(config, files["2.3"])
    for word in ("qk_norm='layer_norm'", "share_ff=True", "rope_type='other'"):
        assert word in str(caught.value)


def test_missing_blocks_are_reported(files: Files) -> None:
    with pytest.raises(CheckpointError, match=r"transformer_blocks\.2\.scale_shift_table"):
        transformer_block({**tiny.METADATA, "num_layers": 3}, files["2.3"])


def test_a_mask_of_ones_changes_nothing_and_zeros_cut_off(files: Files) -> None:
    model = tiny.torch_transformer(files["2.3"])
    video = tiny.inputs(tiny.tiny_config("2.3"))["video"]
    plain, _ = model(video, None)
    ones = np.ones((2, 18, 18), np.float32)
    masked, _ = model(dataclasses.replace(video, attention_mask=ones), None)
    np.testing.assert_array_equal(plain, masked)
    ones[:, :12, 12:] = 0  # tokens 0..11 do not see the last frame: it may hold anything
    cut, _ = model(dataclasses.replace(video, attention_mask=ones), None)
    latent = video.latent.copy()
    latent[:, 12:] = 7
    other, _ = model(dataclasses.replace(video, attention_mask=ones, latent=latent), None)
    np.testing.assert_array_equal(cut[:, :12], other[:, :12])
    assert not np.allclose(cut[:, 12:], other[:, 12:])


def test_user_errors(files: Files) -> None:
    model = tiny.torch_transformer(files["2.3"], "video")
    streams = tiny.inputs(tiny.tiny_config("2.3"))
    with pytest.raises(OptionError, match="no tokens"):
        model(None, None)
    with pytest.raises(OptionError, match="video only"):
        model(None, streams["audio"])
    with pytest.raises(OptionError, match=r"blocks \[5\] do not exist"):
        model(streams["video"], None, Perturbations().and_skip("video_self", [5]))
    wrong = dataclasses.replace(streams["video"], timesteps=np.zeros((2, 7), np.float32))
    with pytest.raises(ShapeError, match="one for every token"):
        model(wrong, None)
