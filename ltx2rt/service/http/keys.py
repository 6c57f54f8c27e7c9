"""API keys: made here, kept as hashes in a file, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from ltx2rt.errors import OptionError

_LINE = re.compile(r"([\w.-]{1,64}) ([0-9a-f]{64})")
_PREFIX = "ltx2rt_"


def digest(key: str) -> str:
    """What is kept of a key. A plain hash is enough: keys are 256 random bits, not words."""
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """Names and hashes of the keys in a file: `NAME HASH` a line.

    Raises:
        OptionError: it cannot be read, or a line of it; or it holds none.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise OptionError(f"cannot read the keys in {path}: {error}.") from error
        self._hashes: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise OptionError(
                    f"line {number} of {path} is not a key: make one with `ltx2rt serve --add-key "
                    "NAME`."
                )
            self._hashes[match[1]] = match[2]
        if not self._hashes:
            raise OptionError(f"{path} holds no keys: make one with `ltx2rt serve --add-key NAME`.")

    def owner(self, key: str) -> str | None:
        """The name of a key; None if it is not one of these."""
        asked, found = digest(key), None
        for name, kept in self._hashes.items():  # all of them: the time tells nothing
            if hmac.compare_digest(asked, kept):
                found = name
        return found


def add_key(path: Path, name: str) -> str:
    """Make a key, keep its hash, and give it back: it is not kept anywhere.

    Raises:
        OptionError: the name is taken or not a name, or the file cannot be written.
    """
    if not re.fullmatch(r"[\w.-]{1,64}", name):
        raise OptionError(f"{name!r} is not a name: letters, digits, . _ and -, at most 64.")
    key = _PREFIX + secrets.token_urlsafe(32)
    try:
        taken = path.exists() and any(x.startswith(f"{name} ") for x in path.open(encoding="utf-8"))
        if taken:
            raise OptionError(f"{path} has a key called {name} already: choose another name.")
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(handle, "a", encoding="utf-8") as file:
            file.write(f"{name} {digest(key)}\n")
    except OSError as error:
        raise OptionError(f"cannot write {path}: {error.strerror or error}.") from error
    return key
