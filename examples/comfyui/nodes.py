"""Load a bundle, stack LoRAs and images, generate, decode, save: each a thin call of `ltx2rt`.

ComfyUI's contract: images are float32 tensors `[B, H, W, C]` in [0, 1], sound is a dictionary of a
`waveform` `[B, channels, N]` and its `sample_rate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch

import ltx2rt

CATEGORY = "ltx2rt"
#: name in the list -> class; each takes a prompt and makes a clip of a size
PIPELINES: dict[str, type[ltx2rt.DistilledPipeline | ltx2rt.OneStagePipeline]] = {
    "distilled": ltx2rt.DistilledPipeline,
    "one-stage (full model)": ltx2rt.OneStagePipeline,
}


class Loaded:
    """A bundle and its pipelines that are open. They stay so: a clip needs its own until it is
    decoded, and ComfyUI may make clips of several pipelines before it decodes the first.
    """

    def __init__(self, bundle: ltx2rt.Bundle, runtime: ltx2rt.RuntimeConfig) -> None:
        self.bundle, self.runtime = bundle, runtime
        self._open: dict[str, Any] = {}

    def pipeline(self, name: str) -> Any:
        """The pipeline of that name, opened if it is not."""
        if name not in self._open:
            self._open[name] = PIPELINES[name](self.bundle, self.runtime)
        return self._open[name]

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


class LoadBundle:
    """A bundle of `ltx2rt build`, and how it runs."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("LTX2RT_BUNDLE",)
    RETURN_NAMES = ("bundle",)
    DESCRIPTION = __doc__

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "folder": ("STRING", {"default": "", "tooltip": "the bundle's folder"}),
                "residency": (["stage", "resident"], {"tooltip": "resident keeps all loaded"}),
                "device": (
                    "INT",
                    {"default": -1, "min": -1, "max": 64, "tooltip": "-1: the first"},
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, folder: str | None) -> bool | str:  # noqa: N802
        """Before anything runs; None is another node's output, which is not known yet."""
        if folder is None or (Path(folder) / "manifest.json").is_file():
            return True
        return f"{folder or 'an empty name'!r} is not the folder of a bundle of `ltx2rt build`"

    @classmethod
    def IS_CHANGED(cls, folder: str | None, **_: Any) -> str:  # noqa: N802
        manifest = Path(folder or "") / "manifest.json"
        return str(manifest.stat().st_mtime_ns) if manifest.is_file() else ""

    def load(self, folder: str, residency: str, device: int) -> tuple[Loaded]:
        runtime = ltx2rt.RuntimeConfig(residency=residency, device=None if device < 0 else device)
        return (Loaded(ltx2rt.open_bundle(folder), runtime),)


class AddLora:
    """One more LoRA of ComfyUI's `loras` folder; they are merged in the order of the stack."""

    CATEGORY = CATEGORY
    FUNCTION = "add"
    RETURN_TYPES = ("LTX2RT_LORAS",)
    RETURN_NAMES = ("loras",)
    DESCRIPTION = __doc__

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        strength = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05}
        return {
            "required": {
                "lora": (folder_paths.get_filename_list("loras"),),
                "strength": ("FLOAT", strength),
            },
            "optional": {"loras": ("LTX2RT_LORAS",)},
        }

    def add(
        self, lora: str, strength: float, loras: tuple[ltx2rt.Lora, ...] = ()
    ) -> tuple[tuple[ltx2rt.Lora, ...]]:
        path = folder_paths.get_full_path("loras", lora)
        if path is None:
            raise ltx2rt.OptionError(f"the LoRA {lora!r} is not in ComfyUI's folders any more.")
        return ((*loras, ltx2rt.Lora(path=path, strength=strength)),)


class AddImage:
    """One more image that the clip shows at a frame; a batch gives one image after another."""

    CATEGORY = CATEGORY
    FUNCTION = "add"
    RETURN_TYPES = ("LTX2RT_IMAGES",)
    RETURN_NAMES = ("images",)
    DESCRIPTION = __doc__

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "image": ("IMAGE",),
                "frame": ("INT", {"default": 0, "min": 0, "max": 100_000}),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05}),
            },
            "optional": {"images": ("LTX2RT_IMAGES",)},
        }

    def add(
        self,
        image: torch.Tensor,
        frame: int,
        strength: float,
        images: tuple[ltx2rt.ImageCondition, ...] = (),
    ) -> tuple[tuple[ltx2rt.ImageCondition, ...]]:
        pixels = np.rint(image[..., :3].clamp(0, 1).cpu().numpy() * 255).astype(np.uint8)
        more = [
            ltx2rt.ImageCondition(
                path=ltx2rt.image_file(np.ascontiguousarray(one)),
                frame=frame + number,
                strength=strength,
            )
            for number, one in enumerate(pixels)
        ]
        return ((*images, *more),)


class Generate:
    """A clip: latents that are done, which `decode` or `save` turns into pictures and sound."""

    CATEGORY = CATEGORY
    FUNCTION = "generate"
    RETURN_TYPES = ("LTX2RT_CLIP",)
    RETURN_NAMES = ("clip",)
    DESCRIPTION = __doc__

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        side = {"min": 64, "max": 4096, "step": 2}
        return {
            "required": {
                "bundle": ("LTX2RT_BUNDLE",),
                "pipeline": (list(PIPELINES),),
                "prompt": ("STRING", {"multiline": True, "default": ""}),
                "seed": ("INT", {"default": 10, "min": 0, "max": 2**64 - 1}),
                "width": ("INT", {"default": 1536, **side}),
                "height": ("INT", {"default": 1024, **side}),
                "num_frames": ("INT", {"default": 121, "min": 1, "max": 10_001, "step": 8}),
                "frame_rate": ("FLOAT", {"default": 24.0, "min": 1.0, "max": 240.0}),
            },
            "optional": {
                "loras": ("LTX2RT_LORAS",),
                "images": ("LTX2RT_IMAGES",),
                "audio": ("AUDIO", {"tooltip": "the clip gets this sound, and follows it"}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, prompt: str | None) -> bool | str:  # noqa: N802
        return prompt is None or bool(prompt.strip()) or "the prompt is empty"

    def generate(
        self,
        bundle: Loaded,
        pipeline: str,
        prompt: str,
        audio: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> tuple[ltx2rt.Clip]:
        if audio is not None:
            if len(audio["waveform"]) != 1:
                raise ltx2rt.OptionError(
                    f"the sound is a batch of {len(audio['waveform'])}; a clip takes one."
                )
            samples = audio["waveform"][0].cpu().numpy().astype(np.float32)
            options["audio"] = ltx2rt.sound_file(samples, int(audio["sample_rate"]))
        job = ltx2rt.Job(on_progress=Reporter())
        return (bundle.pipeline(pipeline)(prompt=prompt, job=job, **options),)


class Reporter:
    """Progress in ComfyUI, a bar a stage; its stop button ends the clip at the next step."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: Any = None

    def __call__(self, report: ltx2rt.Progress) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if report.stage != self._stage:
            self._stage, self._bar = report.stage, comfy.utils.ProgressBar(report.total)
        self._bar.update_absolute(report.step, report.total)


class Decode:
    """The frames and the sound of a clip, for other nodes."""

    CATEGORY = CATEGORY
    FUNCTION = "decode"
    RETURN_TYPES = ("IMAGE", "AUDIO", "FLOAT")
    RETURN_NAMES = ("frames", "audio", "frame_rate")
    DESCRIPTION = __doc__

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"clip": ("LTX2RT_CLIP",)}}

    def decode(self, clip: ltx2rt.Clip) -> tuple[torch.Tensor, dict[str, Any], float]:
        shape = (clip.num_frames, clip.height, clip.width, 3)
        frames, done = np.empty(shape, np.float32), 0
        for chunk in clip.float_frames():
            frames[done : done + len(chunk)] = chunk
            done += len(chunk)
        samples = torch.from_numpy(np.ascontiguousarray(clip.audio))[None]
        sound = {"waveform": samples, "sample_rate": clip.audio_sampling_rate}
        return torch.from_numpy(frames), sound, clip.frame_rate


class Save:
    """A clip as a file in ComfyUI's output folder, with what made it (`ltx2rt generate --job`)."""

    CATEGORY = CATEGORY
    FUNCTION = "save"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()
    OUTPUT_NODE = True
    DESCRIPTION = __doc__

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "clip": ("LTX2RT_CLIP",),
                "name": ("STRING", {"default": "ltx2rt"}),
                "kind": (["mp4", "mov", "mkv", "webm", "webp"],),
            }
        }

    def save(self, clip: ltx2rt.Clip, name: str, kind: str) -> dict[str, Any]:
        folder, stem, counter, inside, _ = folder_paths.get_save_image_path(
            name, folder_paths.get_output_directory(), clip.width, clip.height
        )
        file = f"{stem}_{counter:05}_.{kind}"
        clip.save(Path(folder) / file)
        shown = {"filename": file, "subfolder": inside, "type": "output"}
        return {"ui": {"images": [shown], "animated": (True,)}}


_NODES = {
    "Load bundle": LoadBundle,
    "Add LoRA": AddLora,
    "Add image": AddImage,
    "Generate": Generate,
    "Decode": Decode,
    "Save": Save,
}
NODE_CLASS_MAPPINGS = {f"Ltx2rt{kind.__name__}": kind for kind in _NODES.values()}
NODE_DISPLAY_NAME_MAPPINGS = {
    f"Ltx2rt{kind.__name__}": f"{title} (ltx2rt)" for title, kind in _NODES.items()
}
