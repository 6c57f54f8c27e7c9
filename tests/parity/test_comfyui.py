"""The nodes of ComfyUI, in what stands for it: prompts from a bundle to a file."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ltx2rt
from ltx2rt.media.reader import probe_video
from tests.parity.comfyui_host import WIDGETS, Executor, Host, InterruptProcessingException
from tests.parity.demo_loras import write_demo_lora
from tests.parity.examples import FRAMES, RATE, SIDE, keep_sessions

PACK = Path(__file__).parents[2] / "examples" / "comfyui"
SETTINGS = {
    "pipeline": "distilled", "prompt": "a lake", "seed": 7, "width": SIDE, "height": SIDE,
    "num_frames": FRAMES, "frame_rate": RATE,
}  # fmt: skip


@pytest.fixture
def host(demo_model: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    (tmp_path / "loras").mkdir()
    (tmp_path / "output").mkdir()
    write_demo_lora(tmp_path / "loras" / "style.safetensors", demo_model, 1)
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))
    keep_sessions(monkeypatch)
    return Host(tmp_path / "output", tmp_path / "loras")


class Photo:
    """Some other pack's node: two pictures."""

    FUNCTION, RETURN_TYPES = "make", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {"required": {}}

    def make(self) -> tuple[torch.Tensor]:
        return (torch.rand(2, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0)),)


@pytest.fixture
def nodes(host: Host, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Those of the pack, linked into a folder of `custom_nodes` whose path has a dot."""
    place = tmp_path / "v0.3" / "custom_nodes" / "ltx2rt"
    place.parent.mkdir(parents=True)
    place.symlink_to(PACK)
    with host.nodes(place) as found:
        yield {**found, "Photo": Photo}


def node(kind: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind if kind == "Photo" else f"Ltx2rt{kind}", "inputs": inputs}


def loaded(bundle: Path) -> dict[str, Any]:
    return node("LoadBundle", folder=str(bundle), residency="stage", device=-1)


def test_every_node_keeps_the_contract(nodes: dict[str, Any]) -> None:
    sockets: dict[str, set[str]] = {"in": set(), "out": set()}
    for name in nodes.keys() - {"Photo"}:
        kind = nodes[name]
        inputs = kind.INPUT_TYPES()
        json.dumps(inputs)  # the page gets it so
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
                assert isinstance(rest[0]["default"], WIDGETS[what])  # type: ignore[arg-type]
        assert len(kind.RETURN_TYPES) == len(getattr(kind, "RETURN_NAMES", kind.RETURN_TYPES))
        assert kind.RETURN_TYPES or kind.OUTPUT_NODE
        sockets["out"] |= set(kind.RETURN_TYPES)
        assert kind.CATEGORY == "ltx2rt"
        assert kind.DESCRIPTION == kind.__doc__
    ours = {socket for socket in sockets["in"] if socket.startswith("LTX2RT_")}
    assert ours == {socket for socket in sockets["out"] if socket.startswith("LTX2RT_")}


def test_a_prompt_makes_a_clip(
    host: Host, nodes: dict[str, Any], demo_bundle: Path, tmp_path: Path
) -> None:
    prompt = {
        "b": loaded(demo_bundle),
        "l": node("AddLora", lora="style.safetensors", strength=0.5),
        "ll": node("AddLora", lora="style.safetensors", strength=-0.25, loras=["l", 0]),
        "p": node("Photo"),
        "i": node("AddImage", image=["p", 0], frame=0, strength=1.0),
        "ii": node("AddImage", image=["p", 0], frame=7, strength=0.5, images=["i", 0]),
        "g": node("Generate", bundle=["b", 0], loras=["ll", 0], images=["ii", 0], **SETTINGS),
        "d": node("Decode", clip=["g", 0]),
        "s": node("Generate", bundle=["b", 0], audio=["d", 1], **SETTINGS),
        "f": node("Save", clip=["g", 0], name="clips/lake-%width%x%height%", kind="mp4"),
    }
    executor = Executor(nodes)
    (frames, sound, _), shown, (spoken,) = executor.run(prompt, "d", "f", "s")
    ((bundle,), (clip,)) = executor.run(prompt, "b", "g")
    assert executor.ran == []  # everything was kept
    assert [x.strength for x in clip.config.loras] == [0.5, -0.25]
    assert [i.frame for i in clip.config.images] == [0, 1, 7, 8]
    assert (tuple(frames.shape), frames.dtype) == ((FRAMES, SIDE, SIDE, 3), torch.float32)
    assert 0 <= frames.min() < frames.max() <= 1
    assert sound["waveform"].shape[:2] == (1, 2)
    kept = torch.from_numpy(spoken.audio)
    assert torch.equal(kept, sound["waveform"][0, :, : kept.shape[1]])
    assert not torch.equal(*(torch.from_numpy(c.video_latent) for c in (spoken, clip)))
    name = f"lake-{SIDE}x{SIDE}"
    (file,) = shown["ui"]["images"]
    assert file == {"filename": f"{name}_00001_.mp4", "subfolder": "clips", "type": "output"}
    saved = tmp_path / "output" / "clips" / file["filename"]
    assert probe_video(saved).num_frames == FRAMES
    assert ltx2rt.record_in(saved).request.config.seed == 7
    for bar in host.bars:
        assert bar == sorted(bar)
        assert bar[-1][0] == bar[-1][1]  # it is done
    bundle.close()


def test_a_clip_is_decoded_after_another_pipeline_was_opened(
    nodes: dict[str, Any], demo_bundle: Path
) -> None:
    prompt = {
        "b": loaded(demo_bundle),
        "g": node("Generate", bundle=["b", 0], **SETTINGS),
        "d": node("Decode", clip=["g", 0]),
    }
    executor = Executor(nodes)
    (bundle,), _ = executor.run(prompt, "b", "g")
    bundle.pipeline("one-stage (full model)")
    (frames, *_), *_ = executor.run(prompt, "d")
    assert executor.ran == ["Ltx2rtDecode"]
    assert len(frames) == FRAMES
    bundle.close()


def test_a_bundle_that_was_built_anew_is_loaded_again(
    nodes: dict[str, Any], tmp_path: Path
) -> None:
    changed = nodes["Ltx2rtLoadBundle"].IS_CHANGED
    (tmp_path / "manifest.json").touch()
    before = changed(str(tmp_path), residency="stage")
    os.utime(tmp_path / "manifest.json", (1, 1))
    assert changed(str(tmp_path)) != before
    assert changed(None) == changed("/none/such") == ""  # a link; a folder that is gone
    assert nodes["Ltx2rtLoadBundle"].VALIDATE_INPUTS(None) is True


def test_a_prompt_that_cannot_work_is_refused_before_it_runs(
    nodes: dict[str, Any], demo_bundle: Path
) -> None:
    prompt = {
        "b": node("LoadBundle", folder="/none/such", residency="stage", device=-1),
        "g": node("Generate", bundle=["b", 0], **{**SETTINGS, "prompt": " "}),
    }
    said = " | ".join(Executor(nodes).problems(prompt))
    assert "b: '/none/such' is not the folder of a bundle" in said
    assert "g: the prompt is empty" in said
    prompt = {"b": loaded(demo_bundle), "g": node("Generate", bundle=["b", 0], **SETTINGS)}
    prompt["g"]["inputs"]["prompt"] = ["b", 0]  # a link is not known yet
    assert Executor(nodes).problems(prompt) == ["g: prompt: LTX2RT_BUNDLE is no STRING"]


def test_the_stop_button_ends_a_clip(host: Host, nodes: dict[str, Any], demo_bundle: Path) -> None:
    prompt = {"b": loaded(demo_bundle), "g": node("Generate", bundle=["b", 0], **SETTINGS)}
    executor = Executor(nodes)
    host.stop_after = 5
    with pytest.raises(InterruptProcessingException):
        executor.run(prompt, "g")
    host.stop_after = 10**6
    executor.run(prompt, "g")  # and again, with what was loaded
    assert executor.ran == ["Ltx2rtGenerate"]
    executor.run(prompt, "b")[0][0].close()
