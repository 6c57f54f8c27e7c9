"""What `config.pbtxt` tells a model of ours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.config import RuntimeConfig
from ltx2rt.service.sources import Allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """One instance of a model.

    Attributes:
        model, instance: what Triton calls them.
        bundle: opened.
        runtime: how it runs, and where.
        allowed: what requests may name.
        warm_up: JSON of a request that is made when the model is loaded; "": none.
    """

    model: str
    instance: str
    bundle: Bundle
    runtime: RuntimeConfig
    allowed: Allowed
    warm_up: str = ""

    @staticmethod
    def read(arguments: dict[str, str]) -> ModelSettings:
        """From what Triton gives to `initialize`.

        Raises:
            BundleError: the bundle cannot be opened.
        """
        config: dict[str, Any] = json.loads(arguments["model_config"])
        said = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        is_gpu = arguments.get("model_instance_kind") == "GPU"
        weights, media, loras = (
            Path(said[name]) if said.get(name) else None
            for name in ("weights_dir", "media_dir", "lora_dir")
        )
        return ModelSettings(
            model=arguments["model_name"],
            instance=arguments["model_instance_name"],
            bundle=open_bundle(Path(said["bundle"]), weights_dir=weights),
            runtime=RuntimeConfig(
                residency="resident",
                threads=int(said.get("threads", "0")),
                device=int(arguments["model_instance_device_id"]) if is_gpu else None,
            ),
            allowed=Allowed(media_dir=media, lora_dir=loras),
            warm_up=said.get("warm_up", ""),
        )
