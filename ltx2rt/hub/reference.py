"""Names on the model hub in place of paths: `OWNER/NAME[@REVISION][:FILE]`, read from its cache.

Nothing is fetched here: `ltx2rt pull` does that, and says what it takes. Where the cache lies
decides the hub's own package (`HF_HOME`, `HF_HUB_CACHE`).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt.install import install_hint

_PART = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?"
_REFERENCE = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[\w./-]+))?(?::(?P<file>[^:\\]+))?", re.ASCII
)
#: endings of files that are a path, never a name on the hub
_FILES = (".safetensors", ".gguf", ".json", ".pt", ".pth", ".bin", ".ckpt", ".engine", ".bundle")


@dataclass(frozen=True, slots=True)
class HubReference:
    """A file, or all files, of a model on the hub.

    Attributes:
        repo: `OWNER/NAME`.
        revision: a branch, a tag or a commit; None is the hub's main branch.
        file: its path there, or a folder's; None is the whole model.
    """

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}" + (f":{self.file}" if self.file else "")


def parse_reference(text: str) -> HubReference | None:
    """Read a name on the hub; None for what can only be a path."""
    match = _REFERENCE.fullmatch(text)
    if match is None or match["repo"].lower().endswith(_FILES) or ".." in text:
        return None
    return HubReference(match["repo"], match["revision"], match["file"])


def local_path(path: str | os.PathLike[str]) -> Path:
    """The file or folder that a user's text means: one that is here, else what the hub's cache has
    under that name. What is neither a path here nor a name on the hub is returned as it is.

    Raises:
        CheckpointError: it is a name on the hub that was not fetched.
        UnsupportedError: it can only be such a name, and the hub's package is missing.
    """
    place = Path(path)
    reference = parse_reference(str(path))
    if reference is None or os.path.lexists(place):
        return place
    found = _cached(reference)
    if found is None:
        raise CheckpointError(
            f"there is no file or folder {str(path)!r} here, and of that name on the model hub "
            f"nothing in its cache: check the path, or fetch it with `ltx2rt pull {reference}`."
        )
    return found


def _cached(reference: HubReference) -> Path | None:
    hub = hub_package(
        f"{str(reference)!r} is no file or folder here; as a name on the model hub it"
    )
    try:
        folder = Path(
            hub.snapshot_download(
                reference.repo, revision=reference.revision, local_files_only=True
            )
        )
    except hub.errors.IncompleteSnapshotError as error:
        folder = Path(error.snapshot_path)
    except (hub.errors.LocalEntryNotFoundError, hub.errors.HFValidationError):
        return None
    found = folder / reference.file if reference.file else folder
    return found if found.exists() else None


def hub_package(what: str) -> ModuleType:
    """The hub's own package.

    Raises:
        UnsupportedError: it is not installed; `what` needs it.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"{what} needs the package huggingface_hub: {install_hint('hub')}"
        ) from error
    module: ModuleType = huggingface_hub
    return module
