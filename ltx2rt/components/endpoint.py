"""Addresses of endpoints, what goes to them, and how long they are waited for."""

from __future__ import annotations

import ipaddress
import queue
import re
import threading
import time
import urllib.parse
import urllib.request
from typing import Any

from ltx2rt.env import enhance_url
from ltx2rt.errors import Field, OptionError, Problem

#: no address holds these
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\x9f]")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def fetched(request: urllib.request.Request, timeout_s: float, limit: int) -> bytes:
    """The body of an answer, at most a byte more than `limit`. It is waited for on a
    thread: the timeout of a socket starts anew with every byte that trickles in.

    Raises:
        TimeoutError: the whole answer was not there in time.
        OSError, ValueError, http.client.HTTPException: what went wrong.
    """
    opener = urllib.request.build_opener(_NoRedirects)
    end = time.monotonic() + timeout_s
    results: queue.Queue[bytes | BaseException] = queue.Queue()

    def fetch() -> None:
        try:
            data = bytearray()
            with opener.open(request, timeout=timeout_s) as response:
                while time.monotonic() < end and len(data) <= limit:
                    piece = response.read1(limit + 1 - len(data))
                    if not piece:
                        break
                    data += piece
            results.put(bytes(data))
        except BaseException as error:  # raised by who waits
            results.put(error)

    threading.Thread(target=fetch, name="enhance", daemon=True).start()
    try:
        found = results.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(found, BaseException):
        raise found
    if time.monotonic() >= end:
        raise TimeoutError
    return found


def url_problem(url: str, *, insecure: bool) -> Problem | None:
    """What is wrong with an endpoint's address; passwords in it are not repeated."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urllib.parse.SplitResult("", "", "", "", ""), None
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        return Problem(
            Field("url"),
            " holds a user name or password; leave them out and set LTX2RT_ENHANCE_KEY",
        )
    if parts.scheme not in ("http", "https") or not host or _UNPRINTABLE.search(url):
        shown = url if "@" not in url else "(with credentials)"
        return Problem(
            Field("url"),
            f"={shown!r} is not an http or https address such as http://127.0.0.1:8080/v1",
        )
    if parts.scheme == "http" and not insecure and not _is_loopback(host):
        return Problem(
            Field("url"),
            f"={origin_of(url)} is plain http to another machine: prompts, images and the key "
            "could be read on their way; use https, or allow it (",
            Field("insecure"),
            ")",
        )
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def origin_of(url: str) -> str:
    """Scheme, host and port of an address: what a key is bound to."""
    parts = urllib.parse.urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def chat_address(url: str) -> str:
    """Where chats are completed; what follows a `?` stays behind it."""
    parts = urllib.parse.urlsplit(url)
    path = f"{parts.path.rstrip('/')}/chat/completions"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def shown_url(url: str | None) -> str:
    """An address as messages give it: a key may follow a `?`."""
    return (url or "").partition("?")[0]


def key_is_for(url: str, *, named_by_file: bool) -> bool:
    """Whether the key may go to this address: to that of `LTX2RT_ENHANCE_URL`; where that is not
    set, to one that no file named.
    """
    owner = enhance_url()
    if owner is None:
        return not named_by_file
    if url_problem(owner, insecure=True) is not None:
        raise OptionError("LTX2RT_ENHANCE_URL is not an http or https address.")
    return origin_of(owner) == origin_of(url)
