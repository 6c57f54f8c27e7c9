"""Where the files of a request come from: data URLs, uploads, allow-listed folders and origins.

A request names media and LoRAs as text; here that text becomes a file, or is refused. Nothing that
a client writes is ever used as a path.
"""

from __future__ import annotations

import base64
import binascii
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ltx2rt.errors import OptionError
from ltx2rt.plain_data import nearest
from ltx2rt.service.limits import Limits

#: media type -> how its file ends
SUFFIXES = {
    "image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/bmp": ".bmp",
    "image/tiff": ".tiff", "video/mp4": ".mp4", "video/quicktime": ".mov", "video/webm": ".webm",
    "video/x-matroska": ".mkv", "audio/wav": ".wav", "audio/x-wav": ".wav", "audio/mpeg": ".mp3",
    "audio/flac": ".flac", "audio/x-flac": ".flac", "audio/mp4": ".m4a", "audio/ogg": ".ogg",
}  # fmt: skip
UPLOAD = "upload:"
FETCH_TIMEOUT_S = 20
_SHOWN = 60  # characters of what a client wrote, in a message
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What requests may name, besides bringing it along.

    Attributes:
        media_dir: a folder whose files they may name by their path inside it.
        lora_dir: a folder whose LoRAs they may name.
        origins: of URLs that are fetched for them, `https://assets.example.com`.
    """

    media_dir: Path | None = None
    lora_dir: Path | None = None
    origins: tuple[str, ...] = ()

    def loras(self) -> list[str]:
        """Names of the LoRAs."""
        if self.lora_dir is None:
            return []
        found = self.lora_dir.rglob("*.safetensors")
        return sorted(p.relative_to(self.lora_dir).as_posix() for p in found if p.is_file())


@dataclass(slots=True, kw_only=True)
class Sources:
    """The files of one request.

    Attributes:
        folder: of its own files; made when the first one is written.
        allowed, limits: of the service.
        uploads: name -> file that came with the request.
    """

    folder: Path
    allowed: Allowed
    limits: Limits
    uploads: Mapping[str, Path] = field(default_factory=dict)
    _count: int = 0

    def lora(self, name: str) -> str:
        """The file of a LoRA that is named.

        Raises:
            OptionError: there is none of this name.
        """
        known = self.allowed.loras()
        found = next((n for n in (name, f"{name}.safetensors") if n in known), None)
        if found is None or self.allowed.lora_dir is None:
            has = f"it has {', '.join(known[:20])}" if known else "it has none"
            raise OptionError(
                f"this server has no LoRA {name[:_SHOWN]!r}{nearest(name, known)}: {has}"
            )
        return str((self.allowed.lora_dir / found).absolute())

    def media(self, text: str) -> str:
        """The file that a text stands for: `data:...`, `upload:NAME`, a URL, or a name in the
        folder of media.

        Raises:
            OptionError: it is not allowed, too large, or not media.
        """
        self._count += 1
        if self._count > self.limits.max_media:
            raise OptionError(
                f"a request brings more than {self.limits.max_media} files, which this server does "
                "not allow"
            )
        if text.startswith("data:"):
            path, shown = self._of_data_url(text), "the data URL"
        elif text.startswith(UPLOAD):
            path, shown = self._uploaded(text.removeprefix(UPLOAD)), text[:_SHOWN]
        elif "://" in text:
            path, shown = self._fetched(text), text[:_SHOWN]
        else:
            path, shown = self._in_folder(text), text[:_SHOWN]
        self.limits.check_media(path, shown)
        return str(path)

    def _uploaded(self, name: str) -> Path:
        if name not in self.uploads:
            has = ", ".join(sorted(self.uploads)) or "none"
            raise OptionError(f"no file {name[:_SHOWN]!r} came with the request; found: {has}")
        return self.uploads[name]

    def _in_folder(self, text: str) -> Path:
        folder = self.allowed.media_dir
        refusal = OptionError(
            f"{text[:_SHOWN]!r} is not a file that requests may name: send it as a data URL or an "
            "upload" + ("" if folder is None else ", or name a file of the server's media folder")
        )
        if folder is None or "\0" in text:
            raise refusal
        try:
            inside = (folder / text).resolve()
            usable = inside.is_relative_to(folder.resolve()) and inside.is_file()
        except OSError as error:  # a name too long, a circle of links
            raise refusal from error
        if not usable:
            raise refusal
        return inside

    def _of_data_url(self, text: str) -> Path:
        head, comma, body = text.partition(",")
        kind, *options = head.removeprefix("data:").split(";")
        if not comma or "base64" not in options:
            raise OptionError("a data URL must be data:TYPE;base64,DATA")
        suffix = suffix_of(kind)
        self._check_bytes(len(body) * 3 // 4, "the data URL")
        try:
            data = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise OptionError("a data URL is not base64") from error
        path = self._new(suffix)
        path.write_bytes(data)
        return path

    def _fetched(self, url: str) -> Path:
        try:
            parts = urllib.parse.urlsplit(url)
        except ValueError as error:
            raise OptionError(f"{url[:_SHOWN]!r} is not an address: {error}") from error
        origin = f"{parts.scheme}://{parts.netloc}"
        if parts.scheme not in ("http", "https") or origin not in self.allowed.origins:
            allowed = ", ".join(self.allowed.origins) or "none"
            raise OptionError(
                f"this server fetches nothing from {origin[:_SHOWN]!r}; allowed: {allowed}"
            )
        try:
            with _opener().open(url, timeout=FETCH_TIMEOUT_S) as answer:
                suffix = suffix_of(answer.headers.get_content_type())
                path = self._new(suffix)
                self._copy(answer, path, url[:_SHOWN])
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise OptionError(f"cannot fetch {url[:_SHOWN]}: {error}") from error
        return path

    def _copy(self, source: IO[bytes], path: Path, shown: str) -> None:
        count = 0
        with path.open("wb") as file:
            while piece := source.read(_PIECE):
                count += len(piece)
                self._check_bytes(count, shown)
                file.write(piece)

    def _check_bytes(self, count: int, shown: str) -> None:
        if count > self.limits.max_media_bytes:
            raise OptionError(
                f"{shown} has more than {self.limits.max_media_bytes} bytes, which this server "
                "does not allow"
            )

    def _new(self, suffix: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"media-{self._count}{suffix}"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """An allowed origin may not send us elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirects)


def suffix_of(media_type: str) -> str:
    """How the file of a media type ends.

    Raises:
        OptionError: the type is not allowed.
    """
    found = SUFFIXES.get(media_type.lower().strip())
    if found is None:
        raise OptionError(
            f"media of type {media_type[:_SHOWN]!r} are not allowed; allowed: {', '.join(SUFFIXES)}"
        )
    return found
