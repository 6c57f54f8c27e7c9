"""Fetch files from the model hub into its cache: sizes and free disk first, then one by one.

The hub's own package does the work: what was fetched in part is continued; logins, `HF_ENDPOINT`,
`HF_HOME` and `HF_HUB_OFFLINE` are its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ltx2rt.errors import CheckpointError, Ltx2rtError, OptionError, UnsupportedError
from ltx2rt.hub.reference import HubReference, hub_package
from ltx2rt.plain_data import nearest

#: what a whole model is fetched without: weights in formats that are not read, other frameworks
_NOT_READ = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx*", "*.gguf", "*.mp4")
#: kept free on the disk
_SPARE_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Planned:
    """One name: its files on the hub at one commit.

    Attributes:
        files: their paths there.
        bytes: of all of them.
        missing_bytes: of those that are not in the cache.
    """

    reference: HubReference
    commit: str
    files: tuple[str, ...]
    bytes: int
    missing_bytes: int


def plan(references: Sequence[HubReference]) -> list[Planned]:
    """Ask the hub what these names are and how large; nothing is fetched.

    Raises:
        CheckpointError: a name is not there, asks for a licence or a login (all are listed).
        UnsupportedError: the hub's package is missing, `HF_HUB_OFFLINE` is set, or no answer came.
    """
    hub = hub_package("`ltx2rt pull`")
    planned: list[Planned] = []
    problems: list[str] = []
    for reference in references:
        try:
            planned.append(_plan_one(hub, reference))
        except CheckpointError as error:
            problems += error.problems
    if problems:
        raise CheckpointError("cannot fetch", problems)
    return planned


def check_disk(planned: Sequence[Planned]) -> None:
    """Refuse what the disk of the cache has no room for.

    Raises:
        OptionError: says how much is missing and how to have the cache elsewhere.
    """
    wanted = sum(one.missing_bytes for one in planned)
    folder = Path(hub_package("`ltx2rt pull`").constants.HF_HUB_CACHE)
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if wanted and wanted + _SPARE_BYTES > free:
        raise OptionError(
            f"{wanted / 1e9:.1f} GB are to be fetched into {folder}, where {free / 1e9:.1f} GB are "
            "free: make room, or set HF_HOME to a folder on another disk."
        )


def fetch(planned: Sequence[Planned], report: Callable[[int, int, str], None]) -> list[Path]:
    """Fetch what the cache lacks and return where each name lies.

    Args:
        report: called with bytes done and all bytes, of those that were missing, and a file's name.

    Raises:
        CheckpointError, UnsupportedError: see `plan`; a broken connection can be continued.
    """
    hub = hub_package("`ltx2rt pull`")
    progress = _Progress(sum(one.missing_bytes for one in planned), report)
    places = []
    for one in planned:
        for file in one.files:
            with _explained(hub, one.reference):
                place = hub.hf_hub_download(
                    one.reference.repo,
                    file,
                    revision=one.reference.revision,
                    tqdm_class=progress.bar_class(file),
                )
        whole = one.reference.file is None or one.files != (one.reference.file,)
        depth = len(Path(file).parts)
        folder = Path(place).parents[depth - 1] if whole else Path(place)
        places.append(folder / one.reference.file if whole and one.reference.file else folder)
    return places


def _plan_one(hub: ModuleType, reference: HubReference) -> Planned:
    with _explained(hub, reference):
        infos: list[Any]
        if reference.file is not None and Path(reference.file).suffix:
            infos = [
                hub.hf_hub_download(
                    reference.repo, reference.file, revision=reference.revision, dry_run=True
                )
            ]
        else:
            infos = _folder_infos(hub, reference)
    if not infos:
        raise CheckpointError(f"{reference} is an empty folder on the hub, or not there at all.")
    return Planned(
        reference=reference,
        commit=infos[0].commit_hash,
        files=tuple(sorted(info.filename for info in infos)),
        bytes=sum(info.file_size or 0 for info in infos),
        missing_bytes=sum(info.file_size or 0 for info in infos if info.will_download),
    )


def _folder_infos(hub: ModuleType, reference: HubReference) -> list[Any]:
    try:
        infos: list[Any] = hub.snapshot_download(
            reference.repo,
            revision=reference.revision,
            allow_patterns=f"{reference.file}/*" if reference.file else None,
            ignore_patterns=list(_NOT_READ),
            dry_run=True,
            tqdm_class=_silent(),
        )
    except hub.errors.DryRunError as error:  # says only that something went wrong
        raise error.__cause__ or error from None
    return infos


@contextmanager
def _explained(hub: ModuleType, reference: HubReference) -> Iterator[None]:
    """What the hub's package raises inside, as one sentence about a name."""
    errors, site = hub.errors, hub.constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{reference.repo} asks for its licence to be accepted: open {site}/{reference.repo} "
            "while logged in, accept it, then run `hf auth login` here with a token that may read."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no model {reference.repo} on {site}, or it is private: check the name, or "
            "run `hf auth login`."
        ) from error
    except (errors.RevisionNotFoundError, errors.RevisionResolutionError) as error:
        raise CheckpointError(
            f"{reference.repo} has no revision {reference.revision!r}: give a branch, a tag or a "
            "commit of it."
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise CheckpointError(_no_such_file(hub, reference)) from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"{reference} is not a name on the model hub ({error}).") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        offline = hub.constants.HF_HUB_OFFLINE
        raise UnsupportedError(
            "HF_HUB_OFFLINE is set, so nothing is fetched: unset it, or use what is in the cache."
            if offline
            else f"{site} does not answer ({_reason(error)}): check the connection and repeat the "
            "command, it goes on where it stopped."
        ) from error
    except errors.HTTPError as error:  # of the hub, and of the connection
        raise UnsupportedError(
            f"fetching {reference} from {site} stopped ({_reason(error)}): repeat the command, it "
            "goes on where it stopped."
        ) from error


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:120] or type(error).__name__


def _no_such_file(hub: ModuleType, reference: HubReference) -> str:
    assert reference.file is not None
    try:
        with _explained(hub, HubReference(reference.repo, reference.revision)):
            names = hub.HfApi().list_repo_files(reference.repo, revision=reference.revision)
    except Ltx2rtError:
        names = []
    weights = [name for name in names if name.endswith((".safetensors", ".json"))]
    shown = ", ".join(weights[:12]) + (", ..." if len(weights) > 12 else "")
    listed = f"; it has {shown}" if weights else ""
    guess = nearest(reference.file, weights)
    return f"{reference.repo} has no file {reference.file!r}{guess}{listed}."


class _Progress:
    """Adds up what the hub's package tells its progress bars, of all files."""

    def __init__(self, total: int, report: Callable[[int, int, str], None]) -> None:
        self.total, self.done = total, 0
        self._report = report

    def add(self, amount: float, name: str) -> None:
        self.done = min(self.total, self.done + int(amount))
        self._report(self.done, self.total, name)

    def bar_class(self, name: str) -> type:
        """A class of bars that show nothing themselves and report to here."""
        progress = self

        class Bar(_silent()):  # type: ignore[misc]
            def update(self, n: float | None = 1) -> bool | None:
                progress.add(n or 0, name)
                return None

        return Bar


def _silent() -> type:
    from tqdm import tqdm

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **(kwargs | {"disable": True}))

    return Silent
