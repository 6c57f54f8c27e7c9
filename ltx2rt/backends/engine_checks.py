"""Whether an engine can be loaded here: version, GPU and plugins that it was built with."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from ltx2rt.backends.tensorrt_api import APIS
from ltx2rt.bundle.engine_file import EngineInfo, file_sha256
from ltx2rt.errors import BundleError, OptionError

#: the target of engines that run on every GPU from Ampere on
AMPERE_AND_NEWER = "sm80+"


def runs_on(targets: tuple[str, ...], gpu: str) -> bool:
    """Whether an engine for these targets runs on a GPU of that architecture."""
    return gpu in targets or (AMPERE_AND_NEWER in targets and int(gpu[2:]) >= 80)


def check_version(info: EngineInfo, version: str, rebuild: str) -> None:
    """Refuse an engine of another version of its backend.

    Raises:
        BundleError: names both versions and the command that builds it again.
    """
    if info.backend_version != version and not info.version_compatible:
        raise BundleError(
            f"the engine of {info.component} was built by {APIS[info.backend].label} "
            f"{info.backend_version} and {version} is installed: install that version, or build "
            f"again: {rebuild}"
        )


def check_gpu(info: EngineInfo, target: str, name: str, rebuild: str) -> None:
    """Refuse an engine for other GPUs.

    Raises:
        BundleError: names both and the command that builds it again.
    """
    if not runs_on(info.targets, target):
        raise BundleError(
            f"the engine of {info.component} was built for {', '.join(info.targets)} and this GPU "
            f"({name}) is {target}; build again for it: {rebuild}"
        )


def import_plugins(modules: Sequence[str]) -> dict[str, str]:
    """Import the modules that register plugins.

    Returns:
        module -> SHA-256 of its source; "" for modules without a file.

    Raises:
        OptionError: one cannot be imported.
    """
    digests = {}
    for name in modules:
        try:
            file = importlib.import_module(name).__file__
        except ImportError as error:
            raise OptionError(
                f"the plugin module {name!r} cannot be imported ({error}); install it, or put its "
                "folder on PYTHONPATH."
            ) from error
        digests[name] = file_sha256(Path(file)) if file else ""
    return digests


def check_plugins(info: EngineInfo, rebuild: str) -> None:
    """Import the plugins that an engine was built with, and refuse others of the same name.

    Raises:
        BundleError: names the modules that changed and the command that builds the engine again.
        OptionError: one cannot be imported.
    """
    found = import_plugins(tuple(info.plugins))
    if changed := sorted(name for name, digest in info.plugins.items() if found[name] != digest):
        raise BundleError(
            f"the engine of {info.component} was built with other plugins: {', '.join(changed)} "
            f"changed since; restore what it was, or build again: {rebuild}"
        )
