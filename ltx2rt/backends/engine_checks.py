"""Whether an engine can be loaded here: version, GPU and plugins that it was built with."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ltx2rt.backends.tensorrt_api import APIS
from ltx2rt.bundle.engine_file import EngineInfo, file_sha256
from ltx2rt.errors import BundleError, Field, OptionError, Problem

#: the target of engines that run on every GPU from Ampere on
AMPERE_AND_NEWER = "sm80+"
#: the package whose plugins need no leave
OWN_PLUGINS = "ltx2rt_kernels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What of an engine file may run code of the host.

    Attributes:
        plugin_modules: Python modules that the user named, besides ours.
        host_code: engines may bring native code.
    """

    plugin_modules: tuple[str, ...] = ()
    host_code: bool = False

    def allows(self, module: str) -> bool:
        """Whether a plugin module may be imported."""
        return module in self.plugin_modules or module.partition(".")[0] == OWN_PLUGINS


NO_TRUST = Trust()


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
    """Import modules that register plugins, which the user named.

    Returns:
        module -> SHA-256 of its source; "" for modules without a file.

    Raises:
        OptionError: one cannot be imported.
    """
    digests = {}
    for name in modules:
        digests[name] = _digest_of(name)
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise _no_module(name, error) from error
    return digests


def check_plugins(info: EngineInfo, rebuild: str, trust: Trust = NO_TRUST) -> None:
    """Import the plugins that an engine was built with. A bundle is data: only modules that are
    ours or that the user named are looked at, and only those with the right content are imported.

    Raises:
        BundleError: names the modules that nobody named, or that changed, and the command that
            builds the engine again.
        OptionError: one cannot be imported.
    """
    if unknown := sorted(name for name in info.plugins if not trust.allows(name)):
        raise BundleError(
            Problem(
                f"the engine of {info.component} asks for the Python modules {', '.join(unknown)}, "
                "which would run code; if you trust them, name them (",
                Field("plugin_modules"),
                ").",
            )
        )
    found = {name: _digest_of(name) for name in info.plugins}
    if changed := sorted(name for name, digest in info.plugins.items() if found[name] != digest):
        raise BundleError(
            f"the engine of {info.component} was built with other plugins: {', '.join(changed)} "
            f"changed since; restore what it was, or build again: {rebuild}"
        )
    import_plugins(tuple(info.plugins))


def check_host_code(info: EngineInfo, trust: Trust) -> None:
    """Refuse an engine that brings native code of the host, unless the user allows that.

    Raises:
        BundleError: names the option that allows it.
    """
    if info.version_compatible and not trust.host_code:
        raise BundleError(
            Problem(
                f"the engine of {info.component} was built for several versions of "
                f"{APIS[info.backend].label}: it brings native code that would run here; if you "
                "trust who built it, allow it (",
                Field("engine_host_code"),
                ").",
            )
        )


def _digest_of(name: str) -> str:
    """SHA-256 of a module's source, which is not run (its packages are); "" where it has none."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise _no_module(name, error) from error
    if spec is None:
        raise _no_module(name, "it is not installed")
    return file_sha256(Path(spec.origin)) if spec.origin and spec.has_location else ""


def _no_module(name: str, why: object) -> OptionError:
    return OptionError(
        f"the plugin module {name!r} cannot be imported ({why}); install it, or put its folder on "
        "PYTHONPATH."
    )
