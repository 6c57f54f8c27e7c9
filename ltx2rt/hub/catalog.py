"""Official files by name: what each is for, how large it is, under which licence, and the sets that
pipelines need.

Sizes are those that were published, or, where nothing exact was, computed from the model's tensors
or rounded as somebody read them; `ltx2rt pull` asks the hub for today's before it fetches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ltx2rt.hub.reference import HubReference, parse_reference

LTX_LICENCE = "LTX-2 Community License"
GEMMA_LICENCE = "Gemma Terms of Use"
GEMMA_3 = "google/gemma-3-12b-it-qat-q4_0-unquantized"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file, or a whole model, on the hub.

    Attributes:
        name: as `OWNER/NAME[:FILE]`.
        bytes: its published size.
        flag: of `ltx2rt build`, or of `ltx2rt generate` for what is given there.
        purpose: in a few words.
        licence: its name.
        size: what `bytes` are: published to the byte, computed from the names and shapes of the
            model's tensors (but for a header of some kB), or rounded.
    """

    name: str
    bytes: int
    flag: str
    purpose: str
    licence: str = LTX_LICENCE
    size: Literal["published", "computed", "rounded"] = "published"

    @property
    def reference(self) -> HubReference:
        """The name, taken apart."""
        reference = parse_reference(self.name)
        assert reference is not None
        return reference


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSet:
    """What `ltx2rt build` takes for one model.

    Attributes:
        name: of `ltx2rt pull`.
        summary: what it is for.
        checkpoints: precision of the file -> the files that differ by it; the first is the default.
        others: files of every precision.
    """

    name: str
    summary: str
    checkpoints: dict[str, tuple[HubFile, ...]]
    others: tuple[HubFile, ...]

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that there are files in."""
        return tuple(self.checkpoints)

    def files(self, precision: str | None = None) -> tuple[HubFile, ...]:
        """The files of a precision, or of the first one."""
        return (*self.checkpoints[precision or self.precisions[0]], *self.others)


def _ltx(repo: str, flag: str, purpose: str, size: float, file: str) -> HubFile:
    """A file of Lightricks: `size` in GB, exact where it was published so."""
    return HubFile(f"Lightricks/{repo}:{file}.safetensors", round(size * 1e9), flag, purpose)


def _gemma_4(precision: str, size: float) -> HubFile:
    file = f"text_encoders/gemma4-12b-with-proj-ltx-2.5-{precision}"
    return _ltx("LTX-2.5", "--text-encoder", "text encoder (Gemma 4) with projections", size, file)


def _transformer(kind: str, precision: str, size: float) -> HubFile:
    file = f"diffusion_models/ltx-2.5-22b-{kind}-transformer-{precision}"
    return _ltx("LTX-2.5", "--checkpoint", f"transformer, {kind}", size, file)


def _monolith(
    repo: str,
    size: float,
    file: str,
    basis: Literal["published", "computed", "rounded"] = "published",
) -> tuple[HubFile]:
    return (replace(_ltx(repo, "--checkpoint", "all but Gemma", size, file), size=basis),)


_TWICE = "doubles width and height between stages"
_SECOND = "distilled LoRA of the second stage"
_GEMMA_3 = HubFile(GEMMA_3, 24_414_137_010, "--gemma", "text encoder", GEMMA_LICENCE)
# fmt: off
_PARTS_25 = (
    _ltx("LTX-2.5", "--video-vae", "video VAE with the diffusion decoder", 1.472223346,
         "vae/ltx-2.5-video-vae-bf16"),
    _ltx("LTX-2.5", "--audio-vae", "audio VAE and vocoder", 0.36486654,
         "vae/ltx-2.5-audio-vae-bf16"),
    _ltx("LTX-2.5", "--spatial-upsampler", _TWICE, 0.995778752,
         "latent_upscale_models/ltx-2.5-latent-spatial-upscaler-x2-bf16-1.0"),
    _ltx("LTX-2.5", "--duration-head", "predicts the clip's length from the prompt", 0.00384369,
         "model_patches/ltx-2.5-duration-head-bf16"),
)
_LORA_25 = _ltx("LTX-2.5", "--distilled-lora", _SECOND, 8.899889568,
                "loras/ltx-2.5-22b-distilled-lora-450-bf16")
_PARTS_23 = (
    _GEMMA_3,
    _ltx("LTX-2.3", "--spatial-upsampler", _TWICE, 0.99574356,
         "ltx-2.3-spatial-upscaler-x2-1.1"),
)
_LORA_23 = _ltx("LTX-2.3", "--distilled-lora", _SECOND, 7.605507256,
                "ltx-2.3-22b-distilled-lora-384-1.1")
_PARTS_2 = (
    _GEMMA_3,
    replace(
        _ltx("LTX-2", "--spatial-upsampler", _TWICE, 0.995744, "ltx-2-spatial-upscaler-x2-1.0"),
        size="computed",
    ),
)
_LORA_2 = replace(
    _ltx("LTX-2", "--distilled-lora", _SECOND, 7.6746, "ltx-2-19b-distilled-lora-384"),
    size="rounded",
)

SETS: dict[str, ModelSet] = {
    row.name: row
    for row in (
        ModelSet(
            name="ltx-2.5-distilled",
            summary="LTX-2.5, distilled: 8 + 3 steps",
            checkpoints={
                "bf16": (_transformer("distilled", "bf16", 42.018190584),
                         _gemma_4("bf16", 26.263858182)),
                "nvfp4": (_transformer("distilled", "nvfp4", 18.721548408),
                          _gemma_4("bf16", 26.263858182)),
                "int8": (_transformer("distilled", "comfy-int8-convrot", 21.504034224),
                         _gemma_4("comfy-int8-convrot", 15.372969374)),
            },
            others=_PARTS_25,
        ),
        ModelSet(
            name="ltx-2.5-dev",
            summary="LTX-2.5, the full model: guided pipelines",
            checkpoints={
                "bf16": (_transformer("dev", "bf16", 42.018190584),
                         _gemma_4("bf16", 26.263858182)),
                "int8": (_transformer("dev", "comfy-int8-convrot", 21.504034224),
                         _gemma_4("comfy-int8-convrot", 15.372969374)),
            },
            others=(*_PARTS_25, _LORA_25),
        ),
        ModelSet(
            name="ltx-2.3-distilled",
            summary="LTX-2.3, distilled: 8 + 3 steps",
            checkpoints={
                "bf16": _monolith("LTX-2.3", 46.149345334, "ltx-2.3-22b-distilled-1.1"),
                "fp8": _monolith("LTX-2.3-fp8", 29.531884062, "ltx-2.3-22b-distilled-fp8"),
            },
            others=_PARTS_23,
        ),
        ModelSet(
            name="ltx-2.3-dev",
            summary="LTX-2.3, the full model: guided pipelines",
            checkpoints={
                "bf16": _monolith("LTX-2.3", 46.149344974, "ltx-2.3-22b-dev"),
                "fp8": _monolith("LTX-2.3-fp8", 29.145431166, "ltx-2.3-22b-dev-fp8"),
            },
            others=(*_PARTS_23, _LORA_23),
        ),
        ModelSet(
            name="ltx-2-distilled",
            summary="LTX-2 19B, distilled: 8 + 3 steps",
            checkpoints={
                "bf16": _monolith("LTX-2", 43.285044, "ltx-2-19b-distilled", "computed"),
                "fp8": _monolith("LTX-2", 27.1, "ltx-2-19b-distilled-fp8", "rounded"),
            },
            others=_PARTS_2,
        ),
        ModelSet(
            name="ltx-2-dev",
            summary="LTX-2 19B, the full model: guided pipelines",
            checkpoints={
                "bf16": _monolith("LTX-2", 43.285044, "ltx-2-19b-dev", "computed"),
                "fp8": _monolith("LTX-2", 27.1, "ltx-2-19b-dev-fp8", "rounded"),
            },
            others=(*_PARTS_2, _LORA_2),
        ),
    )
}
# fmt: on
