"""What a build is for: backend, targets and precision from a card's name and from the files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltx2rt.backends.tensorrt_api import APIS
from ltx2rt.bundle.targets import CARDS, DEFAULT_RTX_TARGETS
from ltx2rt.device.gpus import local_gpu
from ltx2rt.errors import OptionError, UnsupportedError
from ltx2rt.plain_data import nearest
from ltx2rt.weights.precision import DEFAULT_PRECISION, PRECISIONS, float_precision
from ltx2rt_export.checkpoint import ModelFiles

CPU, THIS = "cpu", "this"


def known_cards() -> tuple[str, ...]:
    """What `--for` takes: `cpu`, `this` and cards as `rtx4090`."""
    return (CPU, THIS, *(_spelled(card.name) for card in CARDS))


def options_for(card: str) -> dict[str, Any]:
    """Backend and targets for a card, `this` machine's GPU, or a `cpu`.

    Raises:
        OptionError: nobody knows a card of that name.
        UnsupportedError: `this`, and there is no GPU here.
    """
    name = _spelled(card)
    if name == CPU:
        return {"backend": "onnxruntime"}
    if name == THIS:
        try:
            gpu = local_gpu("--for this")
        except UnsupportedError as error:
            raise UnsupportedError(
                f"{error} For a card that is not here give its name (--for rtx4090): engines of "
                "TensorRT-RTX are built without a GPU."
            ) from error
        return _gpu_options(_spelled(gpu.name).removeprefix("nvidiageforce"), gpu.target)
    found = next((c for c in CARDS if _spelled(c.name) == name), None)
    if found is None:
        raise OptionError(
            f"--for {card} is not a card that is known{nearest(name, known_cards())}; allowed: "
            f"{', '.join(known_cards())}; for another name its architecture: --backend "
            "tensorrt-rtx --target smNN."
        )
    return _gpu_options(name, found.target)


def _gpu_options(name: str, target: str) -> dict[str, Any]:
    """TensorRT-RTX for cards of that name, which needs no GPU; else TensorRT, on such a GPU."""
    backend = "tensorrt-rtx" if name.startswith("rtx") else "tensorrt"
    return {"backend": backend, "target": (target,)}


def chosen_precision(options: Mapping[str, Any], files: ModelFiles | None) -> str:
    """The precision that `auto` means: float32 on a CPU; on a GPU the checkpoint's own where the
    targets run it, else 16 bits. Without files that is 16 bits.
    """
    if options["backend"] not in APIS:
        return DEFAULT_PRECISION
    targets = options["target"]
    if not targets and options["backend"] == "tensorrt-rtx":
        targets = DEFAULT_RTX_TARGETS
    if not targets and files is not None:
        targets = (local_gpu(f"backend {options['backend']}").target,)
    least = min((int(t.removeprefix("sm")) for t in targets if t[2:].isdigit()), default=80)
    stored = files.storage_format if files is not None else None
    wanted = []
    if stored is not None and stored.name in ("fp8_scaled", "fp8", "nvfp4"):
        family = "nvfp4" if stored.name == "nvfp4" else "fp8"
        static = stored.static_input_scales == stored.layers
        wanted = [f"{family}-static", family] if static else [family]
    usual, older = (float_precision(dtype).name for dtype in ("bfloat16", "float16"))
    return next((n for n in (*wanted, usual) if PRECISIONS[n].min_sm <= least), older)


def _spelled(card: str) -> str:
    return "".join(c for c in card.lower() if c.isalnum())
