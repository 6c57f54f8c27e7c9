"""The nodes of ComfyUI, against a stub of its contract: a workflow from a bundle to a file."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import ltx2rt
from ltx2rt.media.reader import probe_video
from tests.parity.demo_loras import write_demo_lora
from tests.parity.examples import FRAMES, RATE, SIDE, keep_sessions

PACK = Path(__file__).parents[2] / "examples" / "comfyui"
#: types of values that are no sockets
WIDGETS = {"STRING": str, "INT": int, "FLOAT": float, "BOOLEAN": bool}


class Interrupted(Exception):
    """What ComfyUI raises after its stop button."""


class Host(ModuleType):
    """ComfyUI as nodes see it."""

    def __init__(self, output: Path, loras: Path) -> None:
        super().__init__("comfy")
        self.bars: list[list[tuple[int, int]]] = []
        self.stop_after = 10**6
        host = self

        class ProgressBar:
            def __init__(self, total: int) -> None:
                self.seen: list[tuple[int, int]] = []
                host.bars.append(self.seen)

            def update_absolute(self, value: int, total: int | None = None) -> None:
                self.seen.append((value, total or 0))

        def interrupted() -> None:
            if sum(map(len, host.bars)) >= host.stop_after:
                raise Interrupted

        def place(prefix: str, folder: str) -> tuple[str, str, int, str, str]:
            return folder, prefix, 1, "", prefix

        self.utils, self.model_management = ModuleType("utils"), ModuleType("management")
        self.folder_paths = ModuleType("folder_paths")
        self.utils.ProgressBar = ProgressBar  # type: ignore[attr-defined]
        self.model_management.throw_exception_if_processing_interrupted = (  # type: ignore[attr-defined]
            interrupted
        )
        for name, function in {
            "get_filename_list": lambda kind: sorted(p.name for p in loras.iterdir()),
            "get_full_path": lambda kind, name: str(loras / name),
            "get_output_directory": lambda: str(output),
            "get_save_image_path": place,
        }.items():
            setattr(self.folder_paths, name, function)


@pytest.fixture
def host(
    demo_model: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Host]:
    (tmp_path / "loras").mkdir()
    (tmp_path / "output").mkdir()
    write_demo_lora(tmp_path / "loras" / "style.safetensors", demo_model, 1)
    made = Host(tmp_path / "output", tmp_path / "loras")
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "comfy", made)
    monkeypatch.setitem(sys.modules, "comfy.utils", made.utils)
    monkeypatch.setitem(sys.modules, "comfy.model_management", made.model_management)
    monkeypatch.setitem(sys.modules, "folder_paths", made.folder_paths)
    keep_sessions(monkeypatch)
    yield made
    for name in [n for n in sys.modules if n.startswith("comfyui_pack")]:
        del sys.modules[name]


@pytest.fixture
def nodes(host: Host) -> dict[str, Any]:
    """The mappings, as ComfyUI imports a folder of `custom_nodes`."""
    spec = importlib.util.spec_from_file_location(
        "comfyui_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None
    assert spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules["comfyui_pack"] = pack
    spec.loader.exec_module(pack)
    assert pack.NODE_CLASS_MAPPINGS.keys() == pack.NODE_DISPLAY_NAME_MAPPINGS.keys()
    found: dict[str, Any] = pack.NODE_CLASS_MAPPINGS
    return found


def test_every_node_keeps_the_contract(nodes: dict[str, Any]) -> None:
    sockets: dict[str, set[str]] = {"in": set(), "out": set()}
    for name, kind in nodes.items():
        inputs = kind.INPUT_TYPES()
        assert set(inputs) <= {"required", "optional", "hidden"}
        given = {k: v for part in inputs.values() for k, v in part.items()}
        taken = inspect.signature(getattr(kind, kind.FUNCTION)).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        assert open_ended or set(given) == set(taken) - {"self"}, name
        for value in given.values():
            assert isinstance(value, tuple)
            what, *rest = value
            sockets["in"].add(what if isinstance(what, str) else "COMBO")
            if rest and "default" in rest[0]:
                assert isinstance(rest[0]["default"], WIDGETS[what])
        assert len(kind.RETURN_TYPES) == len(getattr(kind, "RETURN_NAMES", kind.RETURN_TYPES))
        assert kind.RETURN_TYPES or kind.OUTPUT_NODE
        sockets["out"] |= set(kind.RETURN_TYPES)
        assert kind.CATEGORY == "ltx2rt"
        assert kind.DESCRIPTION == kind.__doc__
    ours = {socket for socket in sockets["in"] if socket.startswith("LTX2RT_")}
    assert ours == {socket for socket in sockets["out"] if socket.startswith("LTX2RT_")}


def run(nodes: dict[str, Any], kind: str, /, **values: Any) -> Any:
    node = nodes[f"Ltx2rt{kind}"]()
    return getattr(node, node.FUNCTION)(**values)


def test_a_workflow_makes_a_clip(
    host: Host, nodes: dict[str, Any], demo_bundle: Path, tmp_path: Path
) -> None:
    (bundle,) = run(nodes, "LoadBundle", folder=str(demo_bundle), residency="stage", device=-1)
    (lora,) = nodes["Ltx2rtAddLora"].INPUT_TYPES()["required"]["lora"][0]
    (loras,) = run(nodes, "AddLora", lora=lora, strength=0.5)
    (loras,) = run(nodes, "AddLora", lora=lora, strength=-0.25, loras=loras)
    assert [x.strength for x in loras] == [0.5, -0.25]
    photo = torch.rand(2, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    (images,) = run(nodes, "AddImage", image=photo[:1], frame=0, strength=1.0)
    (images,) = run(nodes, "AddImage", image=photo, frame=7, strength=0.5, images=images)
    assert [i.frame for i in images] == [0, 7, 8]
    asked: dict[str, Any] = {
        "bundle": bundle, "pipeline": "distilled", "prompt": "a lake", "seed": 7, "width": SIDE,
        "height": SIDE, "num_frames": FRAMES, "frame_rate": float(RATE),
    }  # fmt: skip
    (plain,) = run(nodes, "Generate", **asked)
    (clip,) = run(nodes, "Generate", **asked, loras=loras, images=images)
    assert clip.config.loras == loras
    assert not torch.equal(*(torch.from_numpy(c.video_latent) for c in (plain, clip)))
    assert host.bars[-1][-1][0] == host.bars[-1][-1][1]  # the last stage is done
    frames, sound, _ = run(nodes, "Decode", clip=clip)
    assert (tuple(frames.shape), frames.dtype) == ((FRAMES, SIDE, SIDE, 3), torch.float32)
    assert 0 <= frames.min() < frames.max() <= 1
    assert sound["waveform"].shape[:2] == (1, 2)
    (spoken,) = run(nodes, "Generate", **asked, audio=sound)
    kept = torch.from_numpy(spoken.audio)
    assert torch.equal(kept, sound["waveform"][0, :, : kept.shape[1]])
    shown = run(nodes, "Save", clip=clip, name="lake", kind="mp4")["ui"]["images"][0]
    saved = tmp_path / "output" / shown["filename"]
    assert probe_video(saved).num_frames == FRAMES
    assert ltx2rt.record_in(saved).request.config.seed == 7
    bundle.close()


def test_the_stop_button_ends_a_clip(host: Host, nodes: dict[str, Any], demo_bundle: Path) -> None:
    (bundle,) = run(nodes, "LoadBundle", folder=str(demo_bundle), residency="stage", device=-1)
    host.stop_after = 5
    with pytest.raises(Interrupted):
        run(
            nodes, "Generate", bundle=bundle, pipeline="distilled", prompt="a lake", seed=7,
            width=SIDE, height=SIDE, num_frames=FRAMES, frame_rate=float(RATE),
        )  # fmt: skip
    bundle.close()
    changed = nodes["Ltx2rtLoadBundle"].IS_CHANGED
    assert changed(str(demo_bundle)) != changed("/none/such")
