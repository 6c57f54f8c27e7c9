"""Options of `ltx2rt build`: what does not fit is refused in one sentence, before anything runs."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import block_on_gpu
from ltx2rt.backends.tensorrt_api import APIS, install_hint, load
from ltx2rt.bundle import card_plan
from ltx2rt.bundle.lock import build_lock
from ltx2rt.bundle.targets import RTX_TARGETS
from ltx2rt.cli.build import add_arguments, config_of
from ltx2rt.env import cache_dir
from ltx2rt.errors import OptionError, ShapeError, UnsupportedError
from ltx2rt_export.build_config import BuildConfig
from ltx2rt_export.catalog import COMPONENTS
from ltx2rt_export.engines.build import open_builder
from ltx2rt_export.engines.profile_request import ProfileRequest
from ltx2rt_export.engines.profiles import RULES

RTX = {"backend": "tensorrt-rtx"}


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({**RTX, "precision": "fp8", "target": ("sm86",)}, UnsupportedError, "fp8.*sm86.*bf16"),
        ({**RTX, "precision": "nvfp4", "target": ("sm89",)}, UnsupportedError, "nvfp4.*sm89.*fp8"),
        ({**RTX, "precision": "bf16", "target": ("sm75",)}, UnsupportedError, "bf16.*sm75.*fp16"),
        ({**RTX, "target": ("sm90",)}, UnsupportedError, "no target sm90.*--backend tensorrt"),
        ({**RTX, "target": ("sm42",)}, UnsupportedError, "unknown target 'sm42'.*sm120"),
        ({**RTX, "target": ("sm89", "sm89")}, UnsupportedError, "named twice"),
        ({**RTX, "shapes": ("770x512x121",)}, ShapeError, "Nearest valid: 768x512x121"),
        ({**RTX, "timing_cache": Path("x")}, OptionError, "no option timing_cache"),
        ({**RTX, "version_compatible": True}, OptionError, "no option version_compatible"),
        ({**RTX, "plugin_modules": ("x",)}, OptionError, "no option plugin_modules"),
        ({"target": ("sm89",)}, OptionError, "onnxruntime has no option target"),
        ({"precision": "nvfp4"}, OptionError, "onnxruntime runs no nvfp4"),
        ({"precision": "fp9"}, OptionError, "precision='fp9'; allowed: fp32"),
        ({"backend": "magic"}, OptionError, "backend='magic'; allowed: onnxruntime"),
        ({**RTX, "max_batch": 0}, OptionError, "max_batch=0 is not in 1..16"),
        ({**RTX, "optimization_level": 6}, OptionError, "optimization_level=6"),
        ({**RTX, "shapes": ()}, OptionError, "no shapes"),
        ({**RTX, "precision": "int8"}, OptionError, "tensorrt-rtx runs no int8; allowed: fp32"),
        ({"precision": "int8", "lora_inputs": True}, OptionError, "int8 has them inside"),
        ({"precision": "bf16", "weights": "constant"}, OptionError, "for CPUs, and bf16 is not"),
        ({"plain_layers": (0,)}, OptionError, "precision fp32 quantises no layers"),
        ({**RTX, "weights": "none"}, OptionError, "weights='none'; allowed: input, constant"),
    ],
)
def test_bad_options(options: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        BuildConfig(**options)


def test_all_problems_at_once() -> None:
    with pytest.raises(OptionError) as error:
        BuildConfig(backend="tensorrt-rtx", target=("sm42",), max_batch=99, shapes=("1x1x1",))
    for part in ("3 problems", "max_batch=99", "1x1x1", "sm42"):
        assert part in str(error.value)


def test_flags_are_the_fields_and_have_their_defaults() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert config_of(parser.parse_args(["--checkpoint", "x"])) == BuildConfig()
    given = parser.parse_args(
        "--checkpoint x --backend tensorrt-rtx --precision fp8 --target sm89,sm120 --shapes "
        "64x64x9,128x64x9 --max-batch 2 --components transformer_block --plain-layers 0,2 "
        "--optimization-level 3".split()
    )
    config = config_of(given)
    assert config.targets == ("sm89", "sm120")
    assert config.plain_layers == (0, 2)
    again = parser.parse_args(["--checkpoint", "x", *config.flags().split()])
    assert config_of(again) == config
    assert BuildConfig().flags() == ""
    assert "cache" not in dataclasses.replace(config, cache_dir=Path("/tmp")).flags()


def test_every_component_has_a_rule_for_its_buckets() -> None:
    assert {row.name for row in COMPONENTS} <= set(RULES)


def test_missing_library_says_how_to_install_it_for_this_cuda() -> None:
    api = APIS["tensorrt"]
    assert "pip install tensorrt-cu13" in install_hint(api, None)
    assert "pip install tensorrt-cu12" in install_hint(api, (12, 8))
    assert "pip install tensorrt-cu13" in install_hint(api, (14, 0))
    assert "driver supports CUDA 11.8, which is too old" in install_hint(api, (11, 8))


def test_tensorrt_without_the_library_stops_at_the_first_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    config = BuildConfig(
        backend="tensorrt",
        precision="fp8",
        target=("sm90",),
        timing_cache=tmp_path / "timing",
        hardware_compatible=True,
        version_compatible=True,
        workspace_mib=512,
        aux_streams=2,
        optimization_level=4,
        cache_dir=tmp_path / "cache",
    )
    assert config.builder_options() == {
        "optimization_level": 4,
        "workspace_bytes": 512 * 2**20,
        "aux_streams": 2,
        "hardware_compatible": True,
        "version_compatible": True,
    }
    none: Any = None
    with pytest.raises(UnsupportedError, match=r"needs TensorRT, .* pip install tensorrt-cu1"):
        open_builder(config, none)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(UnsupportedError, match="tensorrt"):
        load("tensorrt")


def test_the_block_is_timed_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX has no target for an H100, an RTX 3090 no FP8."""
    monkeypatch.setattr(block_on_gpu, "installed_version", lambda backend: "1")
    assert block_on_gpu.variants("sm90") == [("tensorrt", "bf16"), ("tensorrt", "fp8")]
    assert block_on_gpu.variants("sm86") == [("tensorrt", "bf16"), ("tensorrt-rtx", "bf16")]
    assert len(block_on_gpu.variants("sm120")) == 4


def test_libraries_that_do_not_load_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tensorrt.py").write_text("import ctypes\nctypes.CDLL('libnone.so.11')\n")
    with pytest.raises(UnsupportedError, match=r"libnone\.so\.11.*pip install tensorrt-cu1"):
        load("tensorrt")


def test_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest that the plan of a card's memory fits, and the smallest with all layers."""
    manifest = SimpleNamespace(components={})
    needs = {"least": 10 << 30, "whole": 15 << 30}

    def plan(manifest: Any, needs: Any, room: int, *, resident: bool, card: str) -> Any:
        assert not resident
        if room < needs["least"]:
            raise UnsupportedError(f"not on {card}")
        return SimpleNamespace(streams=room < needs["whole"])

    monkeypatch.setattr(card_plan, "plan_card_memory", plan)

    def found(*targets: str) -> list[str | None]:
        cards = card_plan.fitting_cards(manifest, needs, targets)  # type: ignore[arg-type]
        return [card and card.name for card in cards]

    assert found("sm89") == ["RTX 4080", "RTX 4080"]  # of 16 GiB, 15.5 can be used
    assert found("sm120") == ["RTX 5080", "RTX 5070"]
    needs["whole"] = 500 << 30
    assert found(*RTX_TARGETS) == [None, "RTX 3060"]
    needs["least"] = 500 << 30
    assert found(*RTX_TARGETS) == [None, None]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
    (tmp_path / "file").touch()
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "file"))
    with pytest.raises(OptionError, match="LTX2RT_CACHE"):
        cache_dir()
    monkeypatch.delenv("LTX2RT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "ltx2rt"


def test_a_bundle_where_nothing_can_be_written(tmp_path: Path) -> None:
    with (
        pytest.raises(OptionError, match=r"cannot write .*b: nothing can be made .*another one"),
        build_lock(tmp_path / "no folder" / "b"),
    ):
        pytest.fail("held")


def test_two_builds_into_one_bundle(tmp_path: Path) -> None:
    output = tmp_path / "x.bundle"
    script = (
        "import sys\nfrom pathlib import Path\nfrom ltx2rt.bundle.lock import build_lock\n"
        f"with build_lock(Path({str(output)!r})):\n    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    other = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(OptionError, match=f"process {other.pid}.*x.bundle.*wait"),
            build_lock(output),
        ):
            pytest.fail("two builds at once")
        other.kill()  # a killed build leaves its file, but not its lock
        other.wait()
        with build_lock(output):
            pass
        assert list(tmp_path.iterdir()) == []
    finally:
        other.kill()
        other.communicate()


def test_profile_request_is_made_of_the_model(tmp_path: Path) -> None:
    from ltx2rt.latents.shapes import VideoScaleFactors
    from ltx2rt_export.engines.shapes import parse_shapes

    factors = VideoScaleFactors(8, 16, 16)
    shapes = parse_shapes(["48x32x9"], factors)
    request = ProfileRequest(shapes=shapes, max_batch=1, factors=factors, options={})
    assert [s.name for s in request.stages()] == ["48x32x9"]
